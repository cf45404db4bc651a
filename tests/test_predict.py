"""One file in, one verdict out: people, flags, memory, engines. The lesson is nbs/14_predict.ipynb; here is what would make it long."""
import gc, json, tracemalloc, warnings, weakref
from concurrent.futures import ThreadPoolExecutor

import cv2, numpy as np, pytest
from skimage.data import astronaut, coffee

from madd.core import UserError
from madd.faces import MARGIN, TEMPLATE, Face, FaceDetector, align_face
from madd.media import DAMAGED, BadMedia, VideoInfo, save_image, write_video
from madd.predict import (FEW, FLAGS, HOLDING, LIMITS, MEASURES, NARROWEST, PEOPLE, VERDICTS, VERDICT_FORMAT, Detector, FaceLook, FrameLook, JudgeSettings,
                          People, Person, Verdict, crop_scores, file_verdict, is_cut, judge_person, open_file, person_name, quality_flags, scene, shown_looks, summarise)

R, U, F, N = 'likely real', 'uncertain', 'likely fake', 'no verdict'


class Brightness:
    "An engine that takes the brighter half of all crops for fakes; counts what it is given"
    runtime, size, fingerprint = 'onnx', None, 'abcdefabcdef'
    def __init__(self, maps=True, **notes): self.maps, self.notes, self.batches = maps, dict(size=64, margin=0., **notes), []
    def __call__(self, crops):
        assert crops.dtype == np.uint8 and crops.shape[1:] == (64, 64, 3)
        self.batches.append(len(crops))
        z = (crops.reshape(len(crops), -1).mean(1) - 128)/20
        return np.stack([-z/2, z/2], 1).astype(np.float32), np.ones((len(crops), 3, 4, 4), np.float32) if self.maps else None


def face_at(x, y=100., side=60., score=.99):
    "A face that looks at us"
    return Face(np.array([x - side/2, y - side/2, x + side/2, y + side/2]), (TEMPLATE - .5)*1.3*side + [x, y], score)


def picture(shade=128, h=200, w=480, seed=0):
    "A picture with texture, so that nothing is blurred"
    return np.clip(shade + np.random.default_rng(seed).normal(0, 12, (h, w, 3)), 0, 255).astype(np.uint8)


class Script:
    "A face finder that says what it was told, frame by frame"
    def __init__(self, *frames): self.frames = iter(frames)
    def __call__(self, rgb): return list(next(self.frames))


def judge(frames, faces, engine=None, **more):
    "A verdict on made-up frames and faces"
    d = Detector(engine or Brightness(), faces=Script(*faces), **more)
    return d.judge_frames(((i, i/5, f) for i, f in enumerate(frames)), 'made.mp4')


# --- people


def test_two_people_cross_and_keep_their_numbers():
    walks = [[face_at(60 + 45*t), face_at(420 - 45*t, 104)] for t in range(9)]
    v = judge([picture()]*9, walks)
    left = [min(f.faces, key=lambda a: abs(a.box[0] + 30 - 60 - 45*t)) for t, f in enumerate(v.frames) if t != 4]
    assert len({a.track for a in left}) == 1 and len(v.people) == 2 and [p.frames for p in v.people] == [9, 9]


@pytest.mark.parametrize('away, people', [(4, 1), (5, 2)])
def test_who_leaves_and_returns(away, people):
    faces = [[face_at(100)]]*3 + [[]]*away + [[face_at(104)]]*3
    v = judge([picture()]*len(faces), faces)
    assert len(v.people) == people
    assert sum(f.reason == 'no face found' for f in v.frames) == away
    assert any(f'{away} of {len(faces)} frames could not be judged' in n for n in v.notes)


def test_a_cut_makes_everybody_new_and_says_so():
    scenes = [cv2.resize(im, (480, 200), interpolation=cv2.INTER_AREA) for im in (astronaut(), coffee())]
    v = judge([scenes[0]]*4 + [scenes[1]]*4, [[face_at(100)]]*8)
    assert [(p.track, p.first, p.last) for p in v.people] == [(0, 0., .6), (1, .8, 1.4)]
    assert any('changes 1 time ' in n for n in v.notes)
    assert not is_cut(scene(scenes[0]), scene(scenes[0])) and is_cut(scene(scenes[0]), scene(scenes[1]))


def test_people_who_are_gone_are_forgotten():
    people, rgb = People(), picture()
    for t in range(400): people(rgb, [face_at(100 + 200*(t//8 % 2))] if t % 8 < 2 else [])
    assert people.track.n == 50 and len(people.speed) <= 2 and len(people.track.last) <= 2


def test_even_frames_are_no_cut():
    black = np.zeros((50, 50, 3), np.uint8)
    assert not is_cut(scene(black), scene(black))


def test_frames_minutes_apart_are_mentioned():
    d = Detector(Brightness(), faces=Script(*[[face_at(100)]]*3))
    v = d.judge_frames([(i, 120.*i, picture()) for i in range(3)])
    assert any('up to 120 seconds apart' in n for n in v.notes)


def test_a_fake_beside_a_real_one_makes_the_file_a_fake():
    im = picture(60); im[:, 240:] = picture(200)[:, 240:]
    v = judge([im]*5, [[face_at(100), face_at(380)]]*5)
    assert (v.verdict, v.flags) == (F, ['several people'])
    assert sorted(p.verdict for p in v.people) == [F, R]
    worst = max(v.people, key=lambda p: p.probability)
    assert v.probability == worst.probability and any(person_name(worst.track) in n for n in v.notes)
    assert any('10% of the files' in n for n in v.notes)           # 1 - .95**2


def test_a_crowd_is_cut_short_aloud():
    crowd = [face_at(30 + 45*i, side=44. - i) for i in range(10)]
    v = judge([picture()], [crowd[::-1]])
    judged = [a for a in v.frames[0].faces if a.probability is not None]
    assert len(judged) == PEOPLE == 6 and len(v.frames[0].faces) == len(v.people) == 10
    assert min(a.box[2] - a.box[0] for a in judged) > 38             # the largest ones
    assert any('4 looks were left out: only the 6 largest' in n for n in v.notes)


def test_tiny_faces_are_recorded_and_not_judged():
    engine = Brightness()
    v = judge([picture()]*2, [[face_at(100, side=NARROWEST - 1.)]]*2, engine)
    assert (v.verdict, v.probability, v.reason) == (N, None, 'the face is narrower than 24 pixels')
    assert not engine.batches and len(v.frames[0].faces) == 1 and v.people[0].verdict == N


# --- the rule


LOOKS = lambda ps, flags=(): [(i/5, FaceLook(0, [0.]*4, [0.]*10, 1., p, list(flags))) for i, p in enumerate(ps)]

@pytest.mark.parametrize('words, said', [([R], R), ([F], F), ([U], U), ([R, R], R), ([R, F], F), ([U, F], F), ([R, U], U), ([N], N), ([R, N], R), ([F, N], F), ([U, N], U), ([], N)])
def test_file_rule(words, said): assert file_verdict(words) == file_verdict(words[::-1]) == said


@pytest.mark.parametrize('ps, flags, frames, hold, said', [
    ([.9, .7], [], 2, True, F), ([.1, .3], [], 2, True, R), ([.5], [], 1, True, U), ([.65], [], 1, True, F), ([.35], [], 1, True, R),
    ([.9]*2, ['blurred'], 2, True, U), ([.1]*2, ['blurred'], 2, True, U), ([.9]*2, ['blurred'], 2, False, F), ([.9]*2, ['turned', 'cut off'], 2, True, F),
    ([.9], [], FEW - 1, True, F), ([.9], [], FEW, True, U), ([.9], [], FEW, False, U), ([.1], [], FEW, True, R), ([.9]*2, [], 9, True, F), ([None], [], 1, True, N)])
def test_person_rule(ps, flags, frames, hold, said):
    p = judge_person(0, LOOKS(ps, flags), frames=frames, hold=hold)
    assert p.verdict == said and bool(p.reason) == (said == U and p.probability != .5)


def test_exactly_half_of_the_looks_flagged_is_not_held():
    looks = LOOKS([.9]*2) + LOOKS([.9]*2, ['small'])
    assert judge_person(0, looks).verdict == F and judge_person(0, looks + LOOKS([.9], ['small'])).verdict == U


def test_settings_reach_the_rule():
    shapes = np.kron(np.random.default_rng(0).integers(160, 256, (13, 30, 1)), np.ones((16, 16, 3))).astype(np.uint8)
    blurred = cv2.GaussianBlur(shapes, (0, 0), 6)
    made = lambda hold: judge([blurred]*5, [[face_at(100)]]*5, settings=JudgeSettings(64, 0., hold=hold))
    assert made(True).verdict == U and made(False).verdict == F and made(True).probability == made(False).probability
    assert 'blurred' in made(True).flags and any('held at uncertain: 5 of 5 looks are blurred' in n for n in made(True).notes)


# --- flags


def test_every_flag_can_be_raised_and_none_is_raised_for_nothing():
    finder = FaceDetector()
    rgb = astronaut(); face = finder(rgb)[0]
    flags = lambda im, f, size=112: quality_flags(im, f, align_face(im, f.landmarks, size, MARGIN)[0])
    assert flags(rgb, face) == []
    assert flags(rgb, face, 380) == ['small']
    assert flags(cv2.GaussianBlur(rgb, (0, 0), 4), face) == ['blurred']
    jpeg = cv2.imdecode(cv2.imencode('.jpg', rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 10])[1], 1)[..., ::-1].copy()
    assert flags(jpeg, face) == ['compressed']
    aside = Face(face.box, face.landmarks + np.array([0, 0, .35*np.ptp(face.landmarks[:2, 0]), 0, 0])[:, None]*[1, 0], 1.)
    assert 'turned' in flags(rgb, aside)
    x = int(face.landmarks[0, 0])
    assert 'cut off' in flags(np.ascontiguousarray(rgb[:, x:]), Face(face.box - [x, 0, x, 0], face.landmarks - [x, 0], 1.))
    assert set(MEASURES) == set(LIMITS) == set(FLAGS) - {'several people'} and set(HOLDING) < set(FLAGS)


def test_measures_survive_hostile_faces():
    rgb = picture()
    for f in (face_at(-500.), face_at(100., side=3.), face_at(100., side=5000.), Face(np.array([10., 10, 10, 10]), np.ones((5, 2)), 1.)):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: crop = align_face(rgb, f.landmarks, 64, 0.)[0]
            except Exception: crop = np.zeros((64, 64, 3), np.uint8)
            assert set(quality_flags(rgb, f, crop, 0.)) <= set(FLAGS)


def test_flat_crops_do_not_pass_for_sharp():
    f = face_at(100.)
    assert 'blurred' in quality_flags(np.full((200, 200, 3), 128, np.uint8), f, np.full((64, 64, 3), 128, np.uint8), 0.)


# --- memory


class Watched(np.ndarray): pass

def test_500_frames_leave_nothing_behind():
    alive, most = set(), 0
    def frames(n):
        base = picture(h=360, w=640)
        for i in range(n):
            im = base.copy().view(Watched); alive.add(i); weakref.finalize(im, alive.discard, i); yield i, i/25, im; del im
    engine = Brightness(maps=False)
    d = Detector(engine, faces=lambda rgb: [face_at(100), face_at(400, side=80.)])
    for _ in d.stream(frames(20)): pass                                # warm up
    engine.batches.clear(); gc.collect(); tracemalloc.start()
    peak = []
    for k, look in enumerate(d.stream(frames(500))):
        most = max(most, len(alive))
        if k % 100 == 99: peak.append(tracemalloc.get_traced_memory()[1]); tracemalloc.reset_peak()
    tracemalloc.stop()
    assert k == 499 and most <= 2 and sum(engine.batches) == 1000
    assert max(peak[1:]) < 1.05*peak[0] + 2**16, peak                   # and no growth
    assert peak[0] < 12*2**20, peak                                    # a frame is 0.7 MB, a crop 12 kB


def test_the_record_of_a_frame_is_small():
    d = Detector(Brightness(), faces=lambda rgb: [face_at(100)])
    rgb = picture(); tracemalloc.start()
    v = d.judge_frames((i, i/25, rgb) for i in range(200))
    size = tracemalloc.get_traced_memory()[0]; tracemalloc.stop()
    assert len(v.frames) == 200 and size/200 < 4000, size/200           # bytes per judged face: a film of two hours, every frame: hundreds of MB at most


def test_the_first_face_does_not_wait():
    engine, seen = Brightness(), []
    taken = []
    def frames():
        for i in range(20): taken.append(i); yield i, i/25, picture()
    v = Detector(engine, faces=lambda rgb: [face_at(100)], batch_size=8).judge_frames(frames(), seen=lambda look: seen.append((look.frame, len(taken))))
    assert seen[0] == (0, 1) and [f for f, _ in seen] == list(range(20)) and engine.batches == [1, 8, 8, 3]
    assert all(look.faces[0].probability is not None for look in v.frames)


def test_faceless_frames_are_passed_on_at_once():
    taken, seen = [], []
    def frames():
        for i in range(6): taken.append(i); yield i, i/25, picture()
    Detector(Brightness(), faces=lambda rgb: []).judge_frames(frames(), seen=lambda look: seen.append(len(taken)))
    assert seen == [1, 2, 3, 4, 5, 6]


# --- engines


def test_an_engine_takes_the_place_of_a_model():
    import torch
    class Net(torch.nn.Module):
        notes = dict(size=64, margin=0.)
        def forward(self, x): z = x.mean((1, 2, 3))*128/20; return torch.stack([-z/2, z/2], 1)
    frames = [(i, i/5, picture(110 + 5*i, seed=i)) for i in range(5)]
    a, b = (Detector(e, device='cpu', faces=lambda rgb: [face_at(100)]).judge_frames(frames) for e in (Net(), Brightness()))
    assert (a.runtime, b.runtime, b.model) == ('torch', 'onnx', 'abcdefabcdef')
    assert np.allclose([f.faces[0].probability for f in a.frames], [f.faces[0].probability for f in b.frames], atol=.01) and a.verdict == b.verdict


def test_the_same_verdict_from_an_exported_graph(tmp_path):
    from madd.core import seed_everything
    from madd.export import GraphEngine, export
    from madd.model import MADD
    seed_everything(0)
    model = MADD('mobilenetv2_035', pretrained=False); model.notes.update(size=96, margin=0.)
    model.save(tmp_path/'m')
    frames = [(i, i/5, picture(110 + 5*i)) for i in range(5)]
    graph = GraphEngine(export(tmp_path/'m', 'torchscript', verbose=False), 'torchscript')      # the quickest to write
    made = [Detector.load(tmp_path/'m', device='cpu', batch_size=2), Detector(graph, batch_size=2)]
    for d in made: d.faces = lambda rgb: [face_at(100)]
    a, b = (d.judge_frames(frames) for d in made)
    assert (a.runtime, b.runtime) == ('torch', 'torchscript') and a.model == b.model != '' and a.people[0].frames == 5
    assert np.allclose([f.faces[0].probability for f in a.frames], [f.faces[0].probability for f in b.frames], atol=1e-4)
    a, b = (d.judge_picture(picture(130)).frames[0].faces[0].views for d in made)      # cut eight times, in batches of two
    assert len(a) == 8 and len(set(a)) > 1 and np.allclose(a, b, atol=1e-4)


def test_calibration_travels_with_the_engine():
    crops = [np.full((64, 64, 3), 168, np.uint8)]
    assert np.allclose(crop_scores(Brightness(), crops), 1/(1 + np.exp(-2)), atol=1e-6)
    assert np.allclose(crop_scores(Brightness(temperature=2., shift=1.), crops), 1/(1 + np.exp(-.5)), atol=1e-6)
    assert np.allclose(crop_scores(Brightness(temperature=2., shift=1.), crops, calibrated=False), 1/(1 + np.exp(-2)), atol=1e-6)
    assert len(crop_scores(Brightness(), [])) == 0
    with pytest.raises(UserError, match='temperature'): crop_scores(Brightness(temperature=-1.), crops)


def test_an_engine_of_the_wrong_size_is_refused():
    engine = Brightness(); engine.size = 380
    with pytest.raises(UserError, match='380 pixels'): Detector(engine)
    with pytest.raises(UserError, match='At least 1 crop'): Detector(Brightness(), batch_size=0)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_no_number_no_verdict(bad):
    class Sick(Brightness):
        def __call__(self, crops): return np.full((len(crops), 2), bad, np.float32), None
    v = judge([picture()]*3, [[face_at(100)]]*3, Sick())
    assert (v.verdict, v.probability, v.reason) == (N, None, 'the network gave no finite number')
    json.loads(v.to_json())


def test_one_sick_look_is_left_out_and_mentioned():
    class Hiccup(Brightness):
        def __call__(self, crops):
            logits, maps = super().__call__(crops); logits[crops.mean((1, 2, 3)) > 200] = np.nan; return logits, maps
    v = judge([picture(60), picture(250), picture(60)], [[face_at(100)]]*3, Hiccup())
    assert v.verdict == R and v.people[0].frames == 2 and any('1 look was left out: the network gave no finite number' in n for n in v.notes)


# --- files and records


def test_json_round_trip_and_later_fields():
    v = judge([picture(60), picture(60), picture(60)], [[face_at(100), face_at(300)], [], [face_at(100)]])
    again = Verdict.from_json(v.to_json())
    assert again == v and isinstance(again.frames[0], FrameLook) and isinstance(again.frames[0].faces[0], FaceLook) and isinstance(again.people[0], Person)
    d = json.loads(v.to_json()) | dict(colour='blue'); d['people'][0]['mood'] = 'good'
    assert Verdict.from_dict(d) == v and v.format == VERDICT_FORMAT == 5 and v.verdict in VERDICTS
    with pytest.raises(UserError, match='format 1'): Verdict.from_dict({k: x for k, x in d.items() if k != 'format'})


def test_pictures_and_clips_say_what_they_are(tmp_path):
    d = Detector(Brightness(), faces=lambda rgb: [face_at(100)])
    v = d.predict(save_image(tmp_path/'a.png', picture()))
    assert (v.kind, v.width, v.height, v.seconds, len(v.frames)) == ('picture', 480, 200, None, 1)
    clip = write_video(tmp_path/'a.mp4', [picture(seed=i) for i in range(10)], fps=5)
    for wanted, n in ((1, 1), (4, 4), (99, 10), (None, 10)):
        v = d.predict(clip, wanted)
        assert (v.kind, v.seconds, len(v.frames), v.wanted) == ('clip', 2., n, wanted)
    with pytest.raises(UserError, match='At least 1 frame'): d.predict(clip, 0)


def test_a_caller_may_bring_the_frames(tmp_path):
    d = Detector(Brightness(), faces=lambda rgb: [face_at(100)])
    info = VideoInfo(480, 200, 5., 3, .6)
    v = d.predict('nowhere.mp4', 3, frames=((i, i/5, picture(seed=i)) for i in range(3)), info=info)
    assert (v.path, v.kind, v.seconds, len(v.frames)) == ('nowhere.mp4', 'clip', .6, 3)
    fig = d.figure(v, frames=((i, i/5, picture(seed=i)) for i in range(3)))
    assert len(fig.axes) > 5
    said = []
    def broken():
        yield 0, 0., picture()
        said.append('nowhere.mp4 is cut short')
        raise BadMedia('nowhere.mp4', 'the rest is gone')
    v = d.predict('nowhere.mp4', 3, frames=broken(), said=said)
    assert v.probability is not None and v.reason == '' and {'The file is cut short', 'Reading stopped early: the rest is gone.'} <= set(v.notes)
    def refused():
        raise BadMedia('nowhere.mp4', 'the file is empty')
        yield
    assert d.predict('nowhere.mp4', 3, frames=refused()).reason == 'the file is empty'


def test_a_missing_file_is_a_reason_not_an_error(tmp_path):
    v = Detector(Brightness(), faces=lambda rgb: []).predict(tmp_path/'lost.mp4')
    assert (v.verdict, v.kind, v.frames) == (N, '', []) and 'no such file' in v.reason


def test_warnings_of_others_stay_warnings():
    class Loud(Brightness):
        def __call__(self, crops): warnings.warn('loud engine'); return super().__call__(crops)
    with pytest.warns(UserWarning, match='loud engine'): judge([picture()], [[face_at(100)]], Loud())


def test_files_judged_in_threads_keep_their_own_notes_and_leave_the_warnings_alone(tmp_path):
    sound = save_image(tmp_path/'sound.jpg', picture(180, seed=1)).read_bytes()
    middle, names = len(sound)//2, [f'{"hurt" if k % 2 else "sound"}{k}.jpg' for k in range(16)]
    for name in names: (tmp_path/name).write_bytes(sound[:middle] + b'\xff\0'*60 + sound[middle + 120:] if name.startswith('hurt') else sound)
    d, before = Detector(Brightness(), faces=lambda rgb: [face_at(100)]), list(warnings.filters)
    with ThreadPoolExecutor(8) as pool: verdicts = list(pool.map(lambda n: d.predict(tmp_path/n), names*4))
    assert warnings.filters == before
    for name, v in zip(names*4, verdicts): assert sum(DAMAGED in n for n in v.notes) == name.startswith('hurt') and v.probability > v.high
    assert {v.verdict for v in verdicts if 'hurt' in v.path} == {U} and {v.verdict for v in verdicts if 'sound' in v.path} == {F}


def test_figures_of_nobody_of_one_and_of_many():
    d = Detector(Brightness(), faces=None)
    for faces, rows in (([[]]*3, 1), ([[face_at(100)]]*3, 3), ([[face_at(60 + 50*k, side=40.) for k in range(8)]]*3, 6)):
        frames = [(i, i/5, picture(100 + 20*i)) for i in range(3)]
        v = Detector(Brightness(), faces=Script(*faces)).judge_frames(frames, 'x.mp4')
        assert len(shown_looks(v)) == rows if faces[0] else len(shown_looks(v)) == 1
        fig = d.figure(v, frames=iter(frames))
        shown = [a.get_title() for a in fig.axes if a.get_title()]
        assert shown[0] == ('frame' if faces[0] else 'no face found')
        assert len([a for a in fig.axes if a.images]) == (1 if not faces[0] else rows*6)   # frame, crop, three maps, their sum


def test_which_looks_are_shown():
    made = lambda *people: summarise(Verdict('x.mp4', frames=[FrameLook(t, t/5, [FaceLook(k, [0.]*4, [0.]*10, 1., ps[t]) for k, ps in enumerate(people) if ps[t] is not None]) for t in range(len(people[0]))]))
    assert shown_looks(made([.5, .9, .1, .6, .4])) == [(0, 0), (1, 0), (2, 0)]
    assert shown_looks(made([.5, .9, .1], [None, .2, .3])) == [(0, 0), (2, 1)]
    assert (shown_looks(made([None, None])), shown_looks(made([.3]))) == ([(0, None)], [(0, 0)])


def test_the_label_is_on_the_figure_only():
    d, rgb = Detector(Brightness(), faces=lambda rgb: [face_at(100)]), picture()
    look = d.judge_frames([(0, 0., rgb)]).frames[0]
    bare, labelled = d.tiles(rgb, look), d.tiles(rgb, look, label='FORGED')
    assert [t for t, _ in bare] == [t for t, _ in labelled] and all((a != b).any() for (_, a), (_, b) in zip(bare, labelled))
    assert not (bare[1][1] != labelled[1][1])[:32].any()


# --- what a mean, a crowd and a file format hide


@pytest.mark.parametrize('ending', ['gif', 'png', 'webp'])
def test_an_animation_is_judged_as_the_clip_it_is(tmp_path, ending):
    from PIL import Image
    from madd.judge import predict_paths
    still, moving = tmp_path/f'still.{ending}', tmp_path/f'moving.{ending}'
    Image.fromarray(picture(60)).save(still); Image.fromarray(picture(60)).save(moving, save_all=True, append_images=[Image.fromarray(picture(k)) for k in (90, 120, 150)], duration=200)
    d = Detector(Brightness(), faces=lambda rgb: [face_at(100)])
    for v in (d.predict(moving), Verdict.from_dict(predict_paths(moving, d, tmp_path/'out', video=True)[0])):
        assert v.kind == 'clip' and [f.frame for f in v.frames] == [0, 1, 2, 3] and v.seconds == pytest.approx(.8) and [f.seconds for f in v.frames] == pytest.approx([0, .2, .4, .6])
        assert all(len(f.faces[0].views) <= 1 for f in v.frames), 'a frame of a clip is cut once'
    assert list((tmp_path/'out'/'files').glob('*.mp4')), 'and it is drawn as one'
    assert d.predict(still).kind == 'picture'


def test_results_never_go_where_a_file_is(tmp_path):
    from PIL import Image
    from madd.judge import predict_paths
    file = tmp_path/'face.png'; Image.fromarray(picture(60)).save(file)
    for out in (file, file/'deeper'):
        with pytest.raises(UserError, match='is a file, and the results need a folder'): predict_paths(file, Detector(Brightness(), faces=lambda rgb: [face_at(100)]), out)
    assert file.is_file()


# --- the face of a picture


def test_a_picture_is_cut_several_times_and_a_clip_is_not(tmp_path):
    engine = Brightness(); d = Detector(engine, faces=lambda rgb: [face_at(100), face_at(300, side=40.)], views=5, batch_size=4)
    v = d.predict(save_image(tmp_path/'a.png', picture(130)))
    assert [len(a.views) for a in v.frames[0].faces] == [5, 5] and engine.batches == [4, 4, 2]
    for a in v.frames[0].faces: assert abs(np.mean(a.views) - a.probability) < 1e-5 and np.ptp(a.views) > 0
    engine.batches.clear()
    v = d.predict(write_video(tmp_path/'a.mp4', [picture(130, seed=i) for i in range(4)], fps=5), 4)
    assert [a.views for f in v.frames for a in f.faces] == [[]]*8 and sum(engine.batches) == 8
    assert len(d.predict(tmp_path/'a.mp4', 1).frames[0].faces[0].views) == 0          # a clip is a clip, however little of it is wanted


def test_one_view_is_the_crop_as_it_was_found(tmp_path):
    file = save_image(tmp_path/'a.png', picture(130))
    one, many = (Detector(Brightness(), faces=lambda rgb: [face_at(100)], views=n).predict(file).frames[0].faces[0] for n in (1, 8))
    assert one.views == [] and abs(one.probability - many.views[0]) < 1e-5
    with pytest.raises(UserError, match='at least once, not 0 times'): Detector(Brightness(), faces=list, views=0)


def test_a_view_without_a_finite_number_leaves_none(tmp_path):
    class Sick(Brightness):
        def __call__(self, crops): z, a = super().__call__(crops); z[-1] = np.nan; return z, a
    v = Detector(Sick(), faces=lambda rgb: [face_at(100)]).predict(save_image(tmp_path/'a.png', picture(130)))
    assert (v.verdict, v.probability, v.reason) == (N, None, 'the network gave no finite number')


def test_views_at_the_rim_of_a_picture_and_nobody_at_all(tmp_path):
    d = Detector(Brightness(), faces=lambda rgb: [face_at(2., 2.)])
    assert len(d.judge_picture(picture(130)).frames[0].faces[0].views) == 8
    assert Detector(Brightness(), faces=lambda rgb: []).judge_picture(picture()).reason == 'no face was found in the picture'


def test_other_views_are_judged_again(tmp_path):
    from madd.judge import predict_paths
    file = save_image(tmp_path/'a.png', picture(130))
    rows = [predict_paths(file, Detector(Brightness(), faces=lambda rgb: [face_at(100)], views=n), tmp_path/'out', figures=False)[0] for n in (1, 4, 4)]
    assert [len(r['frames'][0]['faces'][0]['views']) for r in rows] == [0, 4, 4] and rows[1]['probability'] != rows[0]['probability']


def test_the_command_line_cuts_as_often_as_the_library():
    import inspect
    from madd import cli
    from madd.predict import VIEWS
    assert inspect.signature(cli.predict).parameters['views'].default == VIEWS == Detector(Brightness(), faces=list).views


def test_the_table_of_faces_holds_the_views(tmp_path):
    import csv
    from madd.judge import predict_paths
    predict_paths(save_image(tmp_path/'a.png', picture(130)), Detector(Brightness(), faces=lambda rgb: [face_at(100)]), tmp_path/'out', figures=False)
    row, = csv.DictReader(open(tmp_path/'out'/'faces.csv'))
    assert abs(np.mean([float(p) for p in row['views'].split('; ')]) - float(row['probability'])) < 1e-5


def test_other_views_leave_clips_as_they_were_judged(tmp_path):
    from madd.judge import predict_paths
    clip, engine = write_video(tmp_path/'a.mp4', [picture(130, seed=i) for i in range(3)], fps=5), Brightness()
    for n in (8, 2): predict_paths(clip, Detector(engine, faces=lambda rgb: [face_at(100)], views=n), tmp_path/'out', n_frames=3, figures=False)
    assert sum(engine.batches) == 3
