"""Keep the result of a finished main job: python bench/demo.py OUT [NAME] reads OUT/metrics.json and writes bench/results/NAME.json."""
import sys
from pathlib import Path
from madd.core import read_json, write_json


def main(out, name='demo'):
    found = read_json(Path(out)/'metrics.json')
    facts = found['settings']
    what = 'built-in identities' if facts['job']['faces'] == 'built-in' else f"pictures in {facts['job']['faces']}/"
    command = 'make demo' + ('' if facts['job']['faces'] == 'built-in' else f" FACES={facts['job']['faces']}")
    keep = ('video_auc', 'frame_auc', 'control_video_auc', 'control_frame_auc', 'headline')
    write_json(Path(__file__).parent/'results'/f'{name}.json', dict(
        what=f'the main job on {what}, from nothing to the report', date=facts['date'], seed=facts['job']['seed'], command=command,
        hardware=facts['hardware'], seconds=facts['seconds']['all'], steps=facts['seconds'], settings=facts['job'], weights=facts['weights'],
        metrics={k: found[k] for k in keep if k in found}, results=found['results']))


if __name__ == '__main__': main(*sys.argv[1:])
