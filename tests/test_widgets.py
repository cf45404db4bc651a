"Widgets: the base keeps its promises (latest wins, no stale picture, one sentence, labels), and every state that knobs can reach is drawn"
import asyncio, re, shutil

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from madd import widgets as w
from madd.core import UserError, heat_over, label_forged
from madd.model import MADD

KEYBOARD = (widgets.IntSlider, widgets.FloatSlider, widgets.Dropdown, widgets.Checkbox)   # all of them turn with arrow keys or the space bar


@pytest.fixture(scope='module')
def movies(): return w.read_movies()


@pytest.fixture(scope='module')
def bench():
    torch.manual_seed(0)
    return w.Workshop(MADD('tf_efficientnet_lite0').eval(), numbers=(28, 29))


@pytest.fixture(scope='module')
def panels(movies, bench):
    return {'attention': w.attention_explorer(movies), 'agda': w.agda_playground(bench.net, movies), 'ril': w.ril_playground(),
            'texture': w.texture_lens(bench), 'forge': w.forge_bench(bench), 'compare': w.compare(movies)}


def line(slope=1.):
    "A draw function that knows three ways to fail"
    if slope > 2: raise UserError('Slopes above 2 leave the paper; choose a smaller one.')
    if slope == -2: raise ValueError('<script>two\nlines</script>')
    if slope == -3: raise KeyboardInterrupt
    fig, ax = plt.subplots(figsize=(2, 1)); ax.plot([0, 1], [0, slope]); plt.close(fig)
    fig.set_label(f'Slope {slope:g} < "9". And more.')
    return fig


def toy(): return w.Panel('Toy', line, dict(slope=w.slider('slope', 1., -3., 3., .5)))


# --- the base ---

def test_the_latest_wins():
    async def main():
        panel = toy(); drawn = panel.drawn
        for s in np.linspace(-1.5, 1.5, 7): panel.knobs['slope'].value = s
        assert panel.drawn == drawn and 'madd-late' in panel._dom_classes          # dimmed, not drawn
        await asyncio.sleep(4*panel.wait)
        assert panel.drawn == drawn + 1 and 'Slope 1.5' in panel.picture.value and 'madd-late' not in panel._dom_classes
        await asyncio.sleep(4*panel.wait)
        assert panel.drawn == drawn + 1                                            # and nothing is drawn twice
    asyncio.run(main())


def test_a_change_while_drawing_is_drawn_too():
    async def main():
        panel, states = None, []
        def slow(slope=1.):
            states.append(slope)
            if len(states) == 2: panel.knobs['slope'].value = 2.                   # somebody turns on while this is drawn
            return line(slope)
        panel = w.Panel('Slow', slow, dict(slope=w.slider('slope', 1., -3., 3., .5)))
        panel.knobs['slope'].value = 1.5
        await asyncio.sleep(12*panel.wait)
        assert states == [1., 1.5, 2.] and 'Slope 2 ' in panel.picture.value
    asyncio.run(main())


def test_in_a_script_it_draws_at_once():
    panel = toy(); panel.knobs['slope'].value = 0.
    assert 'Slope 0 ' in panel.picture.value


@pytest.mark.parametrize('slope,words', [(2.5, 'Slopes above 2 leave the paper; choose a smaller one.'),
                                         (-2., 'This choice cannot be drawn (ValueError: &lt;script&gt;two lines&lt;/script&gt;).')])
def test_an_error_is_one_sentence_and_takes_the_picture_away(slope, words):
    panel = toy(); panel.knobs['slope'].value = slope
    page = panel.picture.value
    assert words in page and '<img' not in page and 'Traceback' not in page and 'role="alert"' in page
    panel.knobs['slope'].value = 1.
    assert '<img' in panel.picture.value and 'role="alert"' not in panel.picture.value


def test_an_interrupted_drawing_stays_dimmed():
    panel = toy()
    with pytest.raises(KeyboardInterrupt): panel.knobs['slope'].value = -3.
    assert 'madd-late' in panel._dom_classes
    panel.knobs['slope'].value = 1.
    assert 'madd-late' not in panel._dom_classes


def test_words_beside_pixels():
    page = toy().picture.value
    assert 'alt="Slope 1 &lt; &quot;9&quot;"' in page and '<figcaption>Slope 1 &lt; &quot;9&quot;. And more.</figcaption>' in page
    assert re.search(r'src="data:image/jpeg;base64,[A-Za-z0-9+/=]{500,}"', page)


def test_tiles_and_strips():
    fig = w.sheet(2., 'Two tiles.', 'A caution.')
    ax = w.strip(fig, (.1, .3, .5), [w.tile(np.zeros((20, 20, 3), np.uint8)), w.grey([[0., 1.], [1., 0.]])], ['a', 'b'])
    shown = ax.images[0].get_array()
    assert shown.shape == (150, 306, 3) and shown[[10, 10, 140], [170, 290, 170], 0].tolist() == [0, 255, 255] and shown[0, 152, 0] == 255
    assert fig.get_label() == 'Two tiles.' and fig.texts[0].get_text() == 'A caution.'


# --- all six ---

def test_every_knob_has_a_name_and_turns_by_keyboard(panels):
    for panel in panels.values():
        for name, knob in panel.knobs.items():
            assert isinstance(knob, KEYBOARD) and knob.description and knob.tooltip and not knob.disabled, name
        shown = [k for box in panel.children[1].children for k in getattr(box, 'children', [box])]
        assert set(panel.knobs.values()) <= set(shown)                             # nothing is hidden
        assert 'run this notebook' in repr(panel)                                  # what GitHub shows


def values(knob):
    "A few states: both ends and one between"
    if hasattr(knob, 'options'): return [v[1] if isinstance(v, tuple) else v for v in (*knob.options[:1], *knob.options[-2:])]
    if isinstance(knob.value, bool): return [False, True]
    return [knob.min, knob.max, knob.value]


@pytest.mark.parametrize('name', ['attention', 'agda', 'ril', 'texture', 'forge', 'compare'])
def test_every_value_of_every_knob_is_drawn(panels, name):
    panel = panels[name]
    for knob in panel.knobs.values():
        start, before = knob.value, panel.picture.value
        for v in values(knob):
            knob.value = v
            page = panel.picture.value
            if 'cannot be cut into' in page: continue                              # L4 has ten cells a side; the lens says so
            assert '<img' in page and 'nan' not in page.split('<figcaption>')[1].split(), (name, panel.state, page[-300:])
        knob.value = start
        assert panel.picture.value == before                                       # the same state, the same picture
    assert not plt.get_fignums()


def forged_tiles(fig):
    "For every row of tiles: which of them carry the red band"
    rows = [ax.images[0].get_array() for ax in fig.axes if ax.images and np.ndim(ax.images[0].get_array()) == 3]
    side = lambda row: row.shape[0]
    return [[bool((row[side(row) - 3, x + 2:x + 10] == (200, 30, 30)).all()) for x in range(0, row.shape[1], side(row) + 6)] for row in rows]


def test_forged_faces_carry_their_label_and_real_ones_do_not(movies, bench):
    assert forged_tiles(w.attention_figure(movies, method='FaceSwap')) == [[True]*6]
    assert forged_tiles(w.attention_figure(movies, method='original')) == [[False]*6]
    assert forged_tiles(w.agda_figure(bench.net, movies)) == [[True]*4]*3
    assert forged_tiles(w.agda_figure(bench.net, movies, mode='hard'))[0] == [True, True, False, True]     # the erased region is no face
    assert forged_tiles(w.texture_figure(bench, 'no. 28')) == [[False]*5, [True] + [False]*4]
    assert forged_tiles(w.forge_figure(bench, 'no. 28'))[0] == [False, True, False, False, True]
    assert forged_tiles(w.compare_figure(movies, left_method='original')) == [[False]*3]*2 + [[True]*3]*2


def test_the_attention_map_is_the_houses(movies):
    s = w.scene(movies, 'RIL', movies.people[0], 'original', 3)
    row = w.attention_figure(movies, 'RIL', method='original', epoch=3).axes[0].images[0].get_array()
    assert (row[:, 156:306] == heat_over(w.tile(s.image), s.maps[0], .65, vmax=float(s.maps.max()))).all()


def test_notes_and_conditions_are_in_the_picture(movies, bench):
    for fig, words in ((w.attention_figure(movies), 'Attention shows'), (w.agda_figure(bench.net, movies), 'Attention shows'),
                       (w.forge_figure(bench, 'no. 28'), "A score is"), (w.compare_figure(movies), 'A score is')):
        assert words in ' '.join(t.get_text() for t in fig.texts).replace('\n', ' ')
    said = w.attention_figure(movies).get_label()
    assert all(str(movies.about[k]) in said for k in ('data', 'backbone', 'epochs', 'seed', 'measured')) and 'means nothing' in said


def test_sliders_are_linked_until_they_are_not(movies):
    pair = w.compare(movies); a, b = pair.knobs['left_epoch'], pair.knobs['right_epoch']
    a.value = 2; assert b.value == 2
    b.value = 4; assert a.value == 4
    pair.linked.value = False; a.value = 1; assert (a.value, b.value) == (1, 4)
    pair.linked.value = True; assert b.value == 1


def test_drawing_leaves_the_worlds_dice_alone(movies, bench):
    torch.manual_seed(1); np.random.seed(1); a = torch.get_rng_state(), np.random.get_state()[1].copy()
    w.attention_figure(movies); w.agda_figure(bench.net, movies); w.ril_figure(n_maps=3, alpha=.33); w.forge_figure(bench, 'no. 29', 'FaceSwap', .2, 4.)
    assert torch.equal(a[0], torch.get_rng_state()) and (a[1] == np.random.get_state()[1]).all()
    assert not bench.net.training


def test_wrong_states_are_sentences(movies, bench):
    for draw, words in ((lambda: w.attention_figure(movies, 'rill'), 'choose one of none'), (lambda: w.attention_figure(movies, method='FaceApp'), 'kinds: original'),
                        (lambda: w.attention_figure(movies, epoch=99), 'epochs 0 to 6'), (lambda: w.agda_figure(bench.net, movies, which=0), 'maps 1 to 4'),
                        (lambda: w.agda_figure(bench.net, movies, sigma=0.), 'sigma'), (lambda: w.ril_figure(n_maps=0), 'at least one map'), (lambda: w.ril_figure(step=-1), 'steps 0 to 60'),
                        (lambda: w.texture_figure(bench, 'no. 28', stage='L9'), 'choose one of L1'), (lambda: w.texture_figure(bench, 'no. 28', channel=99), 'channels 1 to'),
                        (lambda: w.texture_figure(bench, 'no. 28', pair='x'), 'choose one of'), (lambda: w.texture_figure(bench, 'no. 28', stage='L4', patches=20), 'cannot be cut'),
                        (lambda: w.forge_figure(bench, 'no. 1'), 'choose one of no. 28'), (lambda: w.forge_figure(bench, 'no. 28', 'Photoshop'), 'choose one of Deepfakes'), (lambda: w.forge_figure(bench, 'no. 28', crf=7), 'no compression 7')):
        with pytest.raises(UserError, match=words): draw()


# --- the movies ---

def test_movies_are_small_and_whole(movies):
    assert sum(f.stat().st_size for f in w.MOVIES.iterdir() if f.suffix in ('.npz', '.json')) < 300e3
    assert {m.shape[:2] for m in movies.maps.values()} == {(movies.about['epochs'] + 1, len(movies.people))}
    assert all(0 <= p.min() and p.max() <= 1 for p in movies.prob.values())
    for name in movies.maps: assert len(movies.about['movies'][name]['maps']['correlation']) == movies.about['epochs'] + 1


@pytest.mark.parametrize('damage', ['json missing', 'npz missing', 'cut', 'empty', 'text', 'key missing', 'pickle', 'faces cut', 'other variants'])
def test_damaged_movies_are_one_sentence(tmp_path, damage):
    for f in ('movies.json', 'movies.npz'): shutil.copy(w.MOVIES/f, tmp_path)
    npz = tmp_path/'movies.npz'; parts = dict(np.load(npz))
    if damage == 'json missing': (tmp_path/'movies.json').unlink()
    if damage == 'npz missing': npz.unlink()
    if damage == 'cut': npz.write_bytes(npz.read_bytes()[:9000])
    if damage == 'empty': npz.write_bytes(b'')
    if damage == 'text': npz.write_text('hello')
    if damage == 'key missing': parts.pop('top'); np.savez(npz, **parts)
    if damage == 'pickle': np.savez(npz, **parts | dict(people=np.array([{'a': 1}]*12, dtype=object)))
    if damage == 'faces cut': np.savez(npz, **parts | dict(faces=parts['faces'][:9000]))
    if damage == 'other variants': np.savez(npz, **parts | dict(variants=np.array(['a', 'b', 'c', 'd', 'e'])))
    with pytest.raises(UserError, match='does not exist' if damage == 'json missing' else 'no training movies'): w.read_movies(tmp_path)


def test_what_is_said_about_collapse_follows_the_file(movies):
    assert 'nothing collapsed' in w.finding(movies, 'none') and 'drawn together' in w.finding(movies, 'RIL') and 'driven apart' in w.finding(movies, 'released RIL')
    staged = movies._replace(about=movies.about | dict(movies=movies.about['movies'] | {'none': {'maps': {'correlation': [0., .9]}}}))
    assert 'collapsed towards each other' in w.finding(staged, 'none')


# --- the model in the box ---

def test_an_explorer_of_ones_own_model_is_of_the_box_by_default(tmp_path):
    net = w.lite()
    panel = w.model_explorer()
    assert panel.knobs['face'].options == ('no. 28', 'no. 29', 'no. 30') and len(panel.knobs['which'].options) == net.n_maps + 1 and '<img' in panel.picture.value
    torch.manual_seed(0)
    mine = MADD('tf_efficientnet_lite0', n_maps=2, pretrained=False); mine.notes.update(size=96, margin=.3); mine.save(tmp_path/'mine')
    items = w.own_maps(tmp_path/'mine', numbers=(28, 29))
    assert {o.image.shape for o in items} == {(96, 96, 3)} and {len(o.attns) for o in items} == {2}
    assert [o.mask is None for o in items] == [o.method == 'original' for o in items]
    with pytest.raises(UserError, match='madd-lite'): w.model_explorer('nowhere')


def test_machines_ask_the_box_when_nobody_brings_a_network(movies):
    bench = w.Workshop(numbers=(28, 29))
    assert bench.net is w.lite() and (bench.size, bench.margin) == (160, .05)
    note = ' '.join(' '.join(t.get_text() for t in w.texture_figure(bench).texts).split())
    assert 'madd-lite' in w.forge_figure(bench).get_label() and 'has learnt from forgeries' in note and 'never shown' not in note
    assert 'madd-lite' in w.agda_figure(w.lite(), movies).get_label()


# --- the page of all six ---

def test_the_probability_is_that_of_madd_predict():
    "Of a calibrated network the benches show the calibrated number, which is another than the plain softmax"
    from madd.core import normalise
    from madd.model import load
    from madd.predict import crop_scores
    from madd.export import TorchEngine
    net, crops = load('madd-lite'), np.random.default_rng(0).integers(0, 255, (3, 160, 160, 3), np.uint8)
    shown = w.scores(net, crops)
    assert np.allclose(shown, crop_scores(TorchEngine(net), list(crops)), atol=1e-4)
    with torch.no_grad(): plain = net.eval()(normalise(crops)).softmax(-1)[:, 1].numpy()
    assert np.abs(shown - plain).max() > .02


def test_the_page_builds_what_is_asked_for_once_and_says_what_fails():
    made = []
    def maker(name):
        def make(): made.append(name); return widgets.HTML(name)
        return make
    def broken(): raise UserError('The movies have gone away.')
    page = w.Lazy({'a': maker('a'), 'b': maker('b'), 'c': broken})
    assert made == ['a']
    page.menu.value = 'b'; page.menu.value = 'a'; page.menu.value = 'b'
    assert made == ['a', 'b'] and page.room.children[0].value == 'b'
    page.menu.value = 'c'
    assert 'The movies have gone away.' in page.room.children[0].value and 'run this notebook' in repr(page)
