"""Keep the result of a finished main job: python bench/demo.py OUT [NAME] reads OUT/metrics.json and writes bench/results/NAME.json."""
import sys, tempfile
from pathlib import Path
from skimage.data import astronaut
from madd.core import read_json, write_json
from madd.media import save_image
from madd.predict import Detector


def real_photograph(model):
    "What the detector says of a photograph nobody forged: the one in scikit-image"
    with tempfile.TemporaryDirectory() as d:
        save_image(f'{d}/astronaut.png', astronaut())
        found = Detector.load(model).predict(f'{d}/astronaut.png')
    return dict(picture='skimage.data.astronaut()', verdict=found.verdict, probability=found.probability)


def main(out, name='demo'):
    found = read_json(Path(out)/'metrics.json')
    facts = found['settings']
    what = 'built-in identities' if facts['job']['faces'] == 'built-in' else f"pictures in {facts['job']['faces']}/"
    command = 'make demo' + ('' if facts['job']['faces'] == 'built-in' else f" FACES={facts['job']['faces']}")
    keep = ('video_auc', 'frame_auc', 'control_video_auc', 'control_frame_auc', 'headline')
    write_json(Path(__file__).parent/'results'/f'{name}.json', dict(
        what=f'the main job on {what}, from nothing to the report', date=facts['date'], seed=facts['job']['seed'], command=command,
        hardware=facts['hardware'], seconds=facts['seconds']['all'], steps=facts['seconds'], settings=facts['job'], weights=facts['weights'],
        real_photograph=real_photograph(Path(out)/'madd'), metrics={k: found[k] for k in keep if k in found}, results=found['results']))


if __name__ == '__main__': main(*sys.argv[1:])
