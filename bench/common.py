"""What every results file says about itself: when, where, with what, and by which command."""
import datetime, os, platform, shlex, sys


def cpu():
    "The name of the processor"
    try: return next(l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
    except (OSError, StopIteration): return platform.processor() or platform.machine()


def command():
    "The command line of this program, as it would be typed in the repository's root"
    return shlex.join(['python', os.path.relpath(sys.argv[0]), *sys.argv[1:]])


def today(): return datetime.date.today().isoformat()


def apart(scores, what):
    "Scores of one source among several: each numbers its people from 0, so their keys get its name"
    return scores.assign(dataset=what, video=what + '/' + scores.video, target=what + '/' + scores.target)


def sized(which):
    "A finished model, by folder or name, that says for which crops it was trained"
    from madd.core import UserError
    from madd.model import load
    model = load(which)
    if not {'size', 'margin'} <= set(model.notes): raise UserError(f'{which} does not say for which size and margin it was trained.')
    return model


def files_of(source):
    "name -> the picture of a person as it lies in the folder"
    return {source[i][0]: source.file(i) for i in range(len(source))}


def looks_of(verdict):
    "What `madd predict` saw in a file: one number per look at the largest face of a clip, or per cut of that of a picture, in order of time"
    seen = [f.faces[0] for f in verdict.frames if f.faces]
    return [p for a in seen if a.probability is not None for p in a.views or [a.probability]]


def named(word):
    "(name, folder) of a model on the command line: a name, a folder, or name=folder"
    from pathlib import Path
    name, _, folder = word.rpartition('=')
    return name or Path(folder).name, folder


def scenes(pool, each, seed, hard, desc, turned=0.):
    "Pictures of a real person and of their forgery by the endless forge, travelled alike; `each` scenes per person, every family in turn, with the traces around the face in a share `turned`: (number, person, facts, [real, forged])"
    import numpy as np
    from madd.core import progress
    from madd.endless import FAMILIES, Shares, draw_route, forge_scene, travel
    for k in progress(range(each*len(pool)), desc=desc):
        i, rng = k % len(pool), np.random.default_rng([k, seed])
        family = list(FAMILIES)[(k//len(pool) + i) % len(FAMILIES)]
        real, forged, facts = forge_scene(pool.portraits[i], pool.look_alike(i, rng), rng, (family,), hard, Shares(turned=turned))
        route, at = draw_route(rng, hard), int(rng.integers(2**31))
        yield k, pool.names[i], facts, [travel(rgb, route, at)[0] for rgb in (real.image, forged.image)]


def gains(scores):
    "Every model against the first, on the same videos: the five methods that detectors of the forge know together, and each method there is"
    from madd.evaluate import UNITS
    from madd.forge import METHODS
    from madd.generalise import gain
    first, *others = scores
    videos = {name: UNITS['video'](t) for name, t in scores.items()}
    for name in others:
        for (what, crf), g in videos[name].groupby(['dataset', 'compression']):
            same = videos[first][(videos[first].dataset == what) & (videos[first].compression == crf)]
            for method, kinds in {'the known five': METHODS, **{m: [m] for m in g.method[g.label == 1].unique()}}.items():
                d = gain(*([t[(t.label == 0) | t.method.isin(list(kinds))]] for t in (g, same)))
                yield dict(model=name, against=first, dataset=what, compression=crf, method=method, value=round(d.value, 4), lo=round(d.lo, 4), hi=round(d.hi, 4))
