"""Do detectors of the endless forge generalise?  python bench/generalise.py --faces portraits [--jobs 2] [--only lomo identities source parts] [--out bench/results/generalise.json]

Every cell is one training on the endless forge (`madd.runs.run`, in a process of its own with one thread), tested on official-layout clips of people nobody trained
on: those of the training's own source, and people made from another photograph. Cells are kept in --work: a finished one is never repeated, an interrupted one
goes on, and after every cell the record is written anew. Stop it whenever you like. The scores of finished cells also stand in a folder beside the record (--out without
its ending), so that a study can be continued on another day and on another machine. Of a training in two stages the first is measured as well. `--model` also measures finished models, by folder or by name (madd-lite);
the model in the box has a record of its own:  python bench/generalise.py --only models --model madd-lite --out bench/results/box.json"""
import argparse, json, os, shlex, shutil, subprocess, sys, time
from dataclasses import asdict
from pathlib import Path
from threading import Thread

SETTINGS = dict(size=112, batch_size=32, epochs=6, pretrain_epochs=0, where=0., ema=0., lr=1e-3, workers=0, save_seconds=120.,     # every training; on top of madd.runs.TRAININGS['forge']
                forge=dict(pairs=512, val_pairs=128, margin=.05, ramp=2, retouch=0., people=0, val=40, test=60))        # people=0: everybody who is left
TEST = dict(other=40, frames=4, crfs=[23, 40], seed=0)                                                                  # people of another source; of the clips
KINDS = {'madd': {}, 'no ril': dict(ril=False), 'no agda': dict(agda=False), 'plain': dict(model='PlainDetector')}
CROWDS = [25, 50, 100, 200, 0]                                                                                         # 0: everybody
OUT = Path('bench/results/generalise.json')
FIRST = 'first_'                                                                                                        # before the scores of a training's first stage, where it has two
CALLED = .05                                                                                                           # share of the validation reals above the threshold
TINY = dict(settings=dict(size=64, epochs=1, batch_size=8, save_seconds=2., forge=dict(pairs=32, val_pairs=8, people=24, val=6, test=6)), test=dict(other=6, frames=2), crowds=[8, 0])

if __name__ == '__main__': os.environ.setdefault('OMP_NUM_THREADS', '1')
import numpy as np, pandas as pd, timm, torch

from common import cpu, sized, today
from madd.core import UserError, read_json, reuse_memory, write_json
from madd.endless import FAMILIES, FORGE_VERSION, ForgeConfig, Pool, endless_loaders, forge_config, split_people
from madd.evaluate import UNITS, fake_logit, score_crops
from madd.export import fingerprint
from madd.extract import extract
from madd.generalise import STUDIES, Only, called_fake, gain, held_out_table, mean_auc, portrait_people, skin_tone, test_clips
from madd.manifest import video_row
from madd.media import save_image
from madd.model import load, model_folder
from madd.runs import RunConfig, over, read_config, read_words, run
from madd.sources import face_source, portraits_table


# --- the plan ---

def cells(studies, seeds, crowds, kinds=('madd', 'plain')):
    "study -> trainings (kind, left_out, people, seed); a training may serve several studies"
    full = lambda kind, people=0: (kind, '', people)
    plan = dict(lomo=[(k, f, 0) for f in FAMILIES for k in kinds], identities=[full('madd', n) for n in crowds], source=[full('madd'), full('plain')],
                compression=[full('madd'), full('plain')], parts=[full(k) for k in KINDS], people=[full('madd')])
    return {s: [(*c, seed) for seed in range(seeds) for c in plan[s]] for s in studies}


def name(cell):
    kind, left_out, people, seed = cell
    return f'{kind.replace(" ", "_")}-{left_out or "all"}-{people or "everybody"}-{seed}'


def config(cell, o):
    "The run of a cell"
    kind, left_out, people, seed = cell
    forge = dict(faces=o.faces, left_out=left_out) | (dict(people=people) if people else {})
    return read_config(training='forge', **over(over(o.settings, KINDS[kind]), dict(seed=seed, forge=forge)))


# --- the test, made once ---

def sources(o):
    "name -> (source, people): the training's own, whose test people nobody trains on, and strangers made from another photograph"
    c = forge_config(config(('madd', '', 0, 0), o).forge)
    if o.faces:
        source = face_source(o.faces)
        own = source, split_people(Pool(source).names, 0, c.val, c.test)['test']
    else: own = (source := face_source(None, c.test, 2)), [source[i][0] for i in range(c.test)]     # seed 2: another crowd than that of the training
    other = face_source(None, o.test['other'], 1)
    home = 'portraits' if o.faces else 'built-in'
    return {home: own, 'built-in' if o.faces else 'another crowd': (other, [other[i][0] for i in range(len(other))])}


def prepare(o):
    "Pictures of people nobody trained on, and what is known about them; made once"
    facts = o.work/'test'/'facts.json'
    want = json.loads(json.dumps(dict(faces=bool(o.faces), test=o.test, settings=o.settings, forge=FORGE_VERSION)))
    if facts.exists():
        old = read_json(facts)
        flat = lambda d: {(k, *kk): v for k, x in d.items() for kk, v in (flat(x).items() if isinstance(x, dict) else [((), x)])}
        was, now = flat(old['want']), flat(want)
        differ = [f'{".".join(k)} was {was.get(k)!r} and is now {now.get(k)!r}' for k in was | now if was.get(k) != now.get(k)]
        if differ: raise UserError(f'{o.work} holds a study with other settings ({"; ".join(differ)}): choose another --work.')
        return old
    known = portrait_people()
    out = dict(want=want, people={}, data={})
    for home, (source, names) in sources(o).items():
        only = Only(source, names)
        pool = Pool(only)
        tones = {n: skin_tone(p) for n, p in zip(pool.names, pool.portraits)}
        out['people'][home] = {n: dict(ita=None if np.isnan(t.ita) else round(t.ita, 1), name=t.name, reason=t.reason, sex=known.get(Path(n).stem, '')) for n, t in tones.items()}
        for i in range(len(only)): save_image(o.work/'test'/home/'asis'/f'{Path(only[i][0]).stem}.png', only[i][1])
    out['portraits'] = len(set(portraits_table()['name'].map(lambda n: Path(n).stem)) & {Path(n).stem for n in out['people'].get('portraits', {})})
    write_json(facts, out)
    return out


def crops(o, facts, size, margin):
    "home -> (crops of the clips, crops of the untouched pictures), cut for one network; made once per size and margin"
    out = {}
    for home, people in facts['people'].items():
        at = o.work/'test'/home
        clips, root = test_clips(list(people), Only(Listed(at/'asis', people), list(people)), at, size, margin, o.test['frames'], o.test['crfs'], o.test['seed'])
        rename = lambda d: d.assign(dataset=home, video=home + d.video.str[d.video.iloc[0].index('/'):], target=home + ' ' + d.target)   # two sources, two sets of keys
        rows = pd.DataFrame([video_row(at/'asis'/f'{Path(n).stem}.png', 0, f'{home}, as they are', 'original', '', Path(n).stem, '', n, 'test') for n in people])
        asis = extract(rows, at/f'asis_{size}_{margin:g}', size=size, n_frames=1, margin=margin, workers=1)
        out[home] = (rename(clips), root), (asis, at/f'asis_{size}_{margin:g}')
    return out


class Listed:
    "The pictures of `prepare`, by name, as a source"
    def __init__(self, folder, names): self.folder, self.names = folder, list(names)
    def __len__(self): return len(self.names)
    def __getitem__(self, i):
        from madd.media import read_image
        return self.names[i], read_image(self.folder/f'{Path(self.names[i]).stem}.png')


KEEP = ['dataset', 'compression', 'method', 'video', 'target', 'label', 'frame', 'prob']

def score(model, o, facts, out, before=''):
    "Two tables of scores: clips and untouched pictures; `before` stands before their names"
    notes, tables = model.notes, {'clips': [], 'asis': []}
    for clips, asis in crops(o, facts, int(notes['size']), float(notes['margin'])).values():
        for k, (df, root) in zip(tables, (clips, asis)): tables[k].append(score_crops(model, df, root)[KEEP])
    for k, t in tables.items(): pd.concat(t, ignore_index=True).astype(dict(prob='float32')).to_parquet(out/f'{before}{k}.parquet', index=False, compression='zstd')


# --- one cell, in a process of its own ---

def follow():
    "No life after the parent's"
    parent = os.getppid()
    while os.getppid() == parent: time.sleep(1)
    os._exit(1)


def threshold_of(model, loader):
    "The score that one in twenty real validation faces exceeds"
    z = [(fake_logit(model(x.to(next(model.parameters()).device))), y) for x, y in loader]
    z, y = (torch.cat([torch.as_tensor(b[i]).cpu() for b in z]).numpy() for i in (0, 1))
    return float(np.quantile(1/(1 + np.exp(-z[y == 0])), 1 - CALLED, method='higher')), int((y == 0).sum())


def spelled(settings):
    "Settings with what they do not name: it stood where its default is now, so a new entry must be off by default"
    whole = asdict(RunConfig()) | settings
    return json.loads(json.dumps(whole | dict(forge=asdict(ForgeConfig()) | whole['forge'])))


def settings_of(c, o):
    "What a cell says about its training; no path of a machine"
    return asdict(c) | dict(forge=c.forge | dict(faces='a folder' if os.sep in o.faces else o.faces))


def do_cell(cell, o):
    "Train (or go on), find the threshold on the validation people, score the test"
    Thread(target=follow, daemon=True).start()
    torch.set_num_threads(1); reuse_memory()
    out, c, start = o.work/'cells'/name(cell), config(cell, o), time.perf_counter()
    before = read_json(out/'time.json')['seconds'] if (out/'time.json').exists() else 0.
    def tick(): write_json(out/'time.json', dict(seconds=before + time.perf_counter() - start))
    def clock():
        while True: time.sleep(10); tick()
    out.mkdir(parents=True, exist_ok=True); Thread(target=clock, daemon=True).start()
    found = run(c, None, out/'run', device='cpu')
    model = load(out/'run')
    dls = found.learner.dls if found.learner else endless_loaders(c.forge, c.size, c.batch_size, c.seed, 0, 'cpu')
    with torch.inference_mode(): threshold, n = threshold_of(model, dls.valid)
    score(model, o, read_json(o.work/'test'/'facts.json'), out)
    if (stage := out/'run'/'pretrain').is_dir(): score(load(stage), o, read_json(o.work/'test'/'facts.json'), out, FIRST)
    people = dls.crops['train'].video.nunique()
    tick()
    write_json(out/'cell.json', dict(kind=cell[0], left_out=cell[1], people=people, crowd=cell[2], seed=cell[3], date=today(), seconds=round(read_json(out/'time.json')['seconds']), threads=1, hardware=cpu(),
               epochs=len(found.history), val_auc=[round(float(v), 4) for v in found.history.auc], threshold=threshold, threshold_from=n, forge=FORGE_VERSION, settings=settings_of(c, o)))


def measure_model(which, o, facts):
    "A finished model on the same test"
    out = o.work/'models'/Path(which).name; out.mkdir(parents=True, exist_ok=True)
    model = sized(which)
    score(model, o, facts, out)
    threshold = model.notes.get('verdict', {}).get('high', .65)   # from here on `madd predict` says: likely fake
    write_json(out/'cell.json', dict(model=Path(which).name, fingerprint=fingerprint(model_folder(which)), threshold=threshold, date=today(), settings={k: model.notes[k] for k in ('size', 'margin')}, backbone=model.config.get('backbone', '')))


# --- what is kept, so that a study can go on elsewhere ---

def kept(o): return o.out.with_suffix('')   # a folder per cell, beside the record

def copy_cell(at, to):
    "Scores first: with its cell.json a cell counts as finished"
    to.mkdir(parents=True, exist_ok=True)
    for scores in [at/'clips.parquet', at/'asis.parquet', *at.glob(f'{FIRST}*.parquet')]: shutil.copy(scores, to/scores.name)
    write_json(to/'cell.json', read_json(at/'cell.json'))


def recalled(o):
    "Folders of kept cells that --work lacks; cells of another forge or of other settings must not be mixed with new ones"
    lacking = [f.parent for f in sorted(kept(o).glob('*/cell.json')) if not (o.work/'cells'/f.parent.name/'cell.json').exists()]
    for at in lacking:
        c = read_json(at/'cell.json')
        same = settings_of(config((c['kind'], c['left_out'], c['crowd'], c['seed']), o), o)
        if (c.get('forge'), spelled(c['settings'])) != (FORGE_VERSION, spelled(same)):
            raise UserError(f'{at} was trained with another forge or other settings than this call has: give the same settings, or another --out.')
    return lacking


# --- the record ---

def done(o): return {d.parent.name: d.parent for d in sorted((o.work/'cells').glob('*/cell.json'))}

def rounded(rows): return [{k: None if isinstance(v, float) and not np.isfinite(v) else round(float(v), 4) if isinstance(v, (float, np.floating)) else v for k, v in r.items()} for r in rows]


KNOWN = {}   # what was computed in this process: it depends on the trainings alone

def once(key, f):
    "Compute a table once for the same trainings"
    if key not in KNOWN: KNOWN[key] = f()
    return KNOWN[key]


def tables(o):
    "Everything the notebook draws, from the scores of the finished cells"
    groups = {}
    for d in done(o).values():
        c = read_json(d/'cell.json')
        groups.setdefault((c['kind'], c['left_out'], c['people']), {})[c['seed']] = once(d, lambda: pd.read_parquet(d/'clips.parquet'))
        if c['kind'] == 'madd' and (f := d/f'{FIRST}clips.parquet').exists(): groups.setdefault(('first stage', c['left_out'], c['people']), {})[c['seed']] = once(f, lambda: pd.read_parquet(f))
    scores = [r | dict(kind=k, left_out=f, people=n) for (k, f, n), by in groups.items()
              for r in once(('scores', k, f, n, *sorted(by)), lambda: held_out_table(pd.concat([by[seed].assign(training=seed) for seed in sorted(by)])).to_dict('records'))]
    groups = {g: {seed: once((*g, seed), lambda: UNITS['video'](s)) for seed, s in sorted(by.items())} for g, by in groups.items()}      # one row per video from here on
    most = max((n for _, f, n in groups if not f), default=0)
    return dict(scores=rounded(scores), lomo_mean=rounded(lomo_means(groups)), gains=rounded(all_gains(groups, most)), groups=rounded(group_rows(o)), models=rounded(model_rows(o)))


def videos(s, method, home, crf):
    "One manipulation's fakes and all reals"
    v = s[(s.dataset == home) & (s.compression == crf)]
    return v if method == 'all' else v[(v.label == 0) | (v.method == method)]


def slices_of(groups):
    any_ = next(iter(next(iter(groups.values())).values()))
    return list(any_[['dataset', 'compression']].drop_duplicates().itertuples(index=False, name=None))


def left_outs(groups):
    "kind -> {family: {seed: scores}}, of families and seeds that every kind has finished: kinds can be compared, and no family counts twice in a mean"
    left = {kind: {f: by for (k, f, _), by in groups.items() if k == kind and f} for kind in ('madd', 'plain', 'first stage')}
    left = {kind: by for kind, by in left.items() if by}
    both = [f for f in FAMILIES if all(f in by for by in left.values())]
    seeds = set.intersection(*(set(by[f]) for by in left.values() for f in both)) if left and both else set()
    return {kind: {f: {s: by[f][s] for s in sorted(seeds)} for f in both} for kind, by in left.items()} if seeds else {}


def lomo_means(groups):
    "The mean over the families that were left out, per kind"
    rows = []
    for kind, left in left_outs(groups).items():
        if not left: continue
        for home, crf in slices_of(groups):
            m = once(('mean', kind, home, crf, *((f, *by) for f, by in left.items())), lambda: mean_auc([videos(s, f, home, crf) for f, by in left.items() for s in by.values()]))
            rows.append(dict(kind=kind, dataset=home, compression=crf, auc=m.value, lo=m.lo, hi=m.hi, low=m.low, high=m.high, trainings=m.n, families=len(left)))
    return rows


def all_gains(groups, most):
    "Differences on the same people: the method against its backbone, and against itself without a part"
    rows = []
    def add(question, left_out, pairs):   # of (ours, control, method)
        if not pairs: return
        for home, crf in slices_of(groups):
            a, b = ([videos(p[k], p[2], home, crf) for p in pairs] for k in (0, 1))
            g = once((question, left_out, home, crf, *(id(t) for p in pairs for t in p[:2])), lambda: gain(a, b))
            rows.append(dict(question=question, left_out=left_out, dataset=home, compression=crf, value=g.value, lo=g.lo, hi=g.hi, trainings=g.n))
    def pairs_of(ours, control, method): return [(ours[s], control[s], method) for s in sorted(set(ours) & set(control))]
    left = left_outs(groups)
    for other, question in (('plain', 'MADD against plain'), ('first stage', 'MADD against its first stage')):
        each = {f: pairs_of(left['madd'][f], left[other][f], f) for f in left['madd']} if {'madd', other} <= set(left) else {}
        for f, pairs in each.items(): add(question, f, pairs)
        add(question, 'mean of the families', [p for pairs in each.values() for p in pairs])
    for kind, question in (('plain', 'MADD against plain'), ('no ril', 'RIL'), ('no agda', 'AGDA')):
        add(question, '', pairs_of(groups.get(('madd', '', most), {}), groups.get((kind, '', most), {}), 'all'))
    return rows


def people_of(o): return read_json(o.work/'test'/'facts.json')['people']

def calls(label, folder, threshold, o):
    "Who is called fake: untouched pictures by skin tone and sex, and the same people's real clips"
    asis, clips, rows = pd.read_parquet(folder/'asis.parquet'), pd.read_parquet(folder/'clips.parquet'), []
    home, known = next(iter(people_of(o).items()))
    mine = asis[asis.dataset.str.startswith(home + ',')]
    mine = mine.assign(ita=[known[n]['ita'] for n in mine.target]).sort_values('ita', ascending=False, kind='stable')       # from light to dark; without an angle: last
    middle, has = mine.ita.median(), mine.ita.notna()
    groups = {'class of skin colour': [known[n]['name'] for n in mine.target], 'lighter and darker half': np.where(~has, '', np.where(mine.ita >= middle, f'from {middle:.0f}° up', f'below {middle:.0f}°')),
              'recorded sex': [known[n]['sex'] for n in mine.target]}
    for thing, group in groups.items():
        if any(group): rows += [dict(model=label, thing=thing, threshold=threshold) | r for r in called_fake(mine, threshold, group).to_dict('records')]
    real = UNITS['video'](clips[(clips.dataset == home) & (clips.label == 0)])
    kinds = {'as they are': mine} | {f'their clips, {c}': g for c, g in real.groupby('compression')}
    return rows + [dict(model=label, thing='picture', threshold=threshold) | called_fake(g, threshold).iloc[0].to_dict() | dict(group=k) for k, g in kinds.items()]


def group_rows(o):
    "For the finished models, and for the first training on everybody"
    rows = []
    for d in models_of(o): rows += calls(d.parent.name, d.parent, read_json(d)['threshold'], o)
    first = done(o).get(name(('madd', '', 0, 0)))
    return rows + (calls('madd, seed 0', first, read_json(first/'cell.json')['threshold'], o) if first else [])


def models_of(o): return sorted((o.work/'models').glob('*/cell.json'))

def model_rows(o): return [dict(kind=d.parent.name) | r for d in models_of(o) for r in once(d, lambda: held_out_table(pd.read_parquet(d.parent/'clips.parquet')).to_dict('records'))]


def excluded(o):
    "Why people are in no group"
    home, known = next(iter(people_of(o).items()))
    tone = pd.Series([p['reason'] for p in known.values() if p['reason']]).value_counts()
    sexless = sum(not p['sex'] for p in known.values())
    return {'skin colour': ', '.join(f'{n} left out ({why})' for why, n in tone.items()) or 'nobody left out', 'recorded sex': f'known for {len(known) - sexless} of {len(known)} people'}


def typed(o):
    "The command as anybody could type it"
    words = ['python', 'bench/generalise.py', *o.words, '--faces', 'portraits' if o.faces else '', '--jobs', str(o.jobs), '--seeds', str(o.seeds)]
    more = {'--only': o.only, '--model': [Path(m).name for m in o.model], '--kinds': o.kinds if len(o.kinds) == 1 else [], '--out': [str(o.out)] if o.out != OUT and not o.out.is_absolute() else []}
    return shlex.join([*words, *(w for k, v in more.items() if v for w in (k, *v)), *(['--tiny'] if o.tiny else [])])


def record(o, facts, plan):
    "Write the whole record from what is finished"
    ready = done(o)
    if o.out.exists() and (lost := {c['cell'] for c in read_json(o.out).get('cells', [])} - set(ready)):
        raise UserError(f'{o.out} holds {len(lost)} trainings that {o.work} does not know: give their --work, or another --out.')
    for n, d in ready.items():      # also those that finished when nobody was there to keep them
        if not (kept(o)/n/'cell.json').exists(): copy_cell(d, kept(o)/n)
    homes = list(facts['people'])
    rows = [dict(cell=n) | {k: v for k, v in read_json(d/'cell.json').items() if k != 'settings'} for n, d in ready.items()]
    count = {k: len({v for v in facts['people'][k]}) for k in homes}
    write_json(o.out, dict(date=today(), command=typed(o), hardware=cpu(), torch=torch.__version__, timm=timm.__version__, threads_per_training=1, seeds=o.seeds, home=homes[0],
        faces=f'{facts["portraits"]} of the {count[homes[0]]} test people are in the table of the public-domain portraits' if o.faces else 'built-in identities',
        tested_on=', '.join(f'{n} people ({k})' for k, n in count.items()) + f'; clips of {o.test["frames"]} frames, five manipulations, crf {" and ".join(map(str, o.test["crfs"]))}',
        intervals='95 %, people drawn with replacement; the trainings are those that were run', settings=o.settings, trainings=len(ready), minutes=round(sum(r['seconds'] for r in rows)/60, 1),
        planned={s: len(c) for s, c in plan.items()}, finished={s: sum(name(x) in ready for x in c) for s, c in plan.items()}, left_out_of_groups=excluded(o),
        models={d.parent.name: read_json(d).get('fingerprint', '') for d in models_of(o)}, tables=tables(o) if ready or models_of(o) else {}, cells=rows))


# --- all cells ---

def start_cell(cell, o):
    words = [sys.executable, __file__, '--cell', json.dumps(cell), '--faces', o.faces, '--work', str(o.work), *(['--tiny'] if o.tiny else []), *o.words]
    log = o.work/'cells'/f'{name(cell)}.log'; log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'a') as f: return subprocess.Popen(words, stdout=f, stderr=f, env=os.environ | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1')), log


def work_off(todo, o, finished):
    "`--jobs` cells at a time; the first error stops everything"
    running, left = {}, list(todo)
    try:
        while left or running:
            while left and len(running) < o.jobs: c = left.pop(0); running[c] = start_cell(c, o)
            for c, (p, log) in list(running.items()):
                if p.poll() is None: continue
                del running[c]
                if p.returncode: raise UserError(f'The training {name(c)} stopped: {log.read_text().strip().splitlines()[-1] if log.read_text().strip() else "no word"} (all of it in {log})')
                finished(c, len(left) + len(running))
            time.sleep(.5)
    finally:
        for p, _ in running.values(): p.terminate()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('words', nargs='*', help='other settings, such as epochs=4 forge.pairs=256'); p.add_argument('--faces', default='portraits', help="'portraits', a folder with one portrait per person, or '' for the built-in identities")
    p.add_argument('--jobs', type=int, default=2); p.add_argument('--seeds', type=int, default=2); p.add_argument('--only', nargs='*', default=[], help=f'these studies; all by default: {", ".join(STUDIES)}; or models: train nothing')
    p.add_argument('--kinds', nargs='*', default=['madd', 'plain'], choices=['madd', 'plain'], help='detectors of the study lomo (default: both)')
    p.add_argument('--model', nargs='*', default=[], help='finished models to measure too'); p.add_argument('--tiny', action='store_true', help='a few minutes, to see that it runs')
    p.add_argument('--record', action='store_true', help='train nothing, only write the record of what is finished')
    p.add_argument('--work', type=Path, default=Path('runs/generalise')); p.add_argument('--out', type=Path, default=OUT); p.add_argument('--cell', help=argparse.SUPPRESS)
    o = p.parse_intermixed_args()
    o.words, o.only = [w for w in [*o.words, *o.only] if '=' in w], [w for w in [*o.words, *o.only] if '=' not in w]     # --only lomo epochs=4 means what it says
    if unknown := [s for s in o.only if s not in (*STUDIES, 'models')]: raise UserError(f'There is no study {unknown[0]!r}; choose from {", ".join(STUDIES)}, models.')
    if o.only == ['models'] and not o.model: raise UserError('Nothing to measure: name a model with --model.')
    o.settings = over(over(SETTINGS, TINY['settings'] if o.tiny else {}), read_words(o.words))
    o.test, o.crowds = TEST | (TINY['test'] if o.tiny else {}), TINY['crowds'] if o.tiny else CROWDS
    if o.cell: return do_cell(tuple(json.loads(o.cell)), o)
    torch.set_num_threads(1)
    start = time.perf_counter()
    back = recalled(o)      # before anything is made
    facts, plan = prepare(o), cells(STUDIES, o.seeds, o.crowds, o.kinds)
    for at in back: copy_cell(at, o.work/'cells'/at.name)
    if o.only != ['models']: crops(o, facts, o.settings['size'], o.settings['forge']['margin'])
    for m in o.model: measure_model(m, o, facts)
    wanted = dict.fromkeys(c for seed in range(o.seeds) for s in (o.only or plan) for c in plan.get(s, []) if c[3] == seed)
    left = [c for c in wanted if name(c) not in done(o)]
    todo = [] if o.record else left
    print(f'{len(wanted) - len(left)} of {len(wanted)} trainings are done, the test was ready after {time.perf_counter() - start:.0f} s', flush=True)
    record(o, facts, plan)
    def finished(c, left):
        r = read_json(o.work/'cells'/name(c)/'cell.json'); record(o, facts, plan)
        mean = np.mean([read_json(d/'cell.json')['seconds'] for d in done(o).values()])
        print(f'{name(c):42s} {r["seconds"]:5d} s, best validation AUC {max(r["val_auc"]):.3f}; {left} left, about {left*mean/o.jobs/60:.0f} minutes with {o.jobs} at a time', flush=True)
    work_off(todo, o, finished)


if __name__ == '__main__':
    try: main()
    except UserError as e: sys.exit(f'{e}')
