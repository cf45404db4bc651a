"Exported graphs: the same answer in every format, and no answer at all from a file that is missing, stale, damaged or foreign"
import json, os, shutil, socket, warnings

import numpy as np
import pytest
import torch

from madd import export as ex
from madd.card import write_card
from madd.core import UserError, read_json, write_json
from madd.export import FORMATS, BATCHES, GraphEngine, TorchEngine, export, fingerprint, load_engine, parity, trial_crops
from madd.model import MADD, PlainDetector, load

SMALL, SIZE = 'tf_efficientnet_lite0', 112
MAKERS = dict(
    paper=lambda: MADD(SMALL, n_maps=2, pretrained=False), released=lambda: MADD(SMALL, recipe='released', n_maps=2, pretrained=False),
    single=lambda: MADD(SMALL, n_maps=1, pretrained=False), plain=lambda: PlainDetector('resnet10t', pretrained=False), pyramid=lambda: MADD('resnet10t', n_maps=3, pretrained=False))


def lively(model, seed=0):
    "Batch-norm statistics that are not 0 and 1, as after training, so that a folding mistake would show; larger weights in the last layer, so that logits depend on the picture"
    g = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.copy_(.2*torch.randn(m.num_features, generator=g)); m.running_var.copy_(.5 + torch.rand(m.num_features, generator=g))
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.no_grad(): last.weight.mul_(20)
    return model.eval()


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('models')
    for name, make in MAKERS.items():
        torch.manual_seed(0)
        model = lively(make()); model.notes.update(size=SIZE, margin=.3); model.save(root/name)
    return root


@pytest.fixture(scope='module')
def exported(folders):
    "A small pyramid in all four formats"
    for format in FORMATS: export(folders/'pyramid', format, verbose=False)
    return folders/'pyramid'


@pytest.fixture
def copy(exported, tmp_path): return shutil.copytree(exported, tmp_path/'model')


def refused(call, *words):
    with pytest.raises(UserError) as e: call()
    text = str(e.value)
    assert '\n' not in text, text
    for w in words: assert w in text, text


@pytest.mark.parametrize('format', FORMATS)
def test_every_format_agrees_at_every_batch(exported, format):
    reference, engine = TorchEngine(load(exported), 'cpu'), GraphEngine(exported/FORMATS[format].files[0], format)
    assert max(parity(engine, reference, SIZE)) < 1e-4
    for n in (1, 2, 5, 11):
        crops = np.resize(trial_crops(SIZE), (n, SIZE, SIZE, 3))
        for a, b in zip(engine(crops), reference(crops)):
            assert a.shape == b.shape and a.dtype == np.float32
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3*np.abs(b).max())
    assert np.ptp(reference(trial_crops(SIZE))[0][:, 1]) > 1e-3   # else nothing was compared


@pytest.mark.parametrize('name, format', [('paper', 'onnx'), ('released', 'openvino'), ('released', 'torchscript'), ('single', 'torch.export'), ('plain', 'onnx'), ('paper', 'torchscript')])
def test_every_kind_of_network(folders, name, format):
    path = export(folders/name, format, verbose=False)
    found = parity(GraphEngine(path, format), TorchEngine(load(folders/name), 'cpu'), SIZE)
    assert found.logits < 1e-4 and (found.maps is None) == (name == 'plain')


def test_other_normalisation_is_inside(folders, tmp_path):
    model = load(folders/'pyramid')
    model.input = dict(colours='RGB', mean=[.485, .456, .406], std=[.229, .224, .225]); model.save(tmp_path/'m')
    usual = TorchEngine(load(folders/'pyramid'), 'cpu')(trial_crops(SIZE))[1]
    path = export(tmp_path/'m', 'torchscript', verbose=False)
    other = GraphEngine(path, 'torchscript')(trial_crops(SIZE))[1]
    x = (torch.from_numpy(trial_crops(SIZE)).permute(0, 3, 1, 2)/255 - torch.tensor([.485, .456, .406]).reshape(3, 1, 1))/torch.tensor([.229, .224, .225]).reshape(3, 1, 1)
    with torch.no_grad(): np.testing.assert_allclose(other, model.analyse(x).attention.numpy(), rtol=1e-3, atol=1e-4)
    assert np.abs(usual - other).max() > 1e-2
    for bad in (dict(mean=[.5], std=[.5]), dict(mean=[0, 0, 0], std=[0, 1, 1]), dict(mean=['a']*3, std=[1]*3)):
        model.input = bad; refused(lambda: TorchEngine(model, 'cpu'), 'input')


def test_the_runtimes_name_the_same_model(exported):
    engines = [load_engine(exported, r) for r in ('torch', 'onnx', 'openvino')]
    assert len({e.fingerprint for e in engines}) == 1 and all(e.notes == engines[0].notes for e in engines)
    assert [e.runtime for e in engines] == ['torch', 'onnx', 'openvino'] and [e.size for e in engines[1:]] == [SIZE]*2


def test_missing_and_foreign(exported, copy, folders, tmp_path):
    for runtime, format in (('onnx', 'onnx'), ('openvino', 'openvino')): refused(lambda: load_engine(folders/'single', runtime), f'madd export {folders/"single"} --format {format}')
    (copy/'model.bin').unlink(); refused(lambda: load_engine(copy, 'openvino'), 'model.bin', 'madd export')
    refused(lambda: load_engine(tmp_path/'nowhere', 'onnx'), 'no folder'); refused(lambda: load_engine(copy, 'coreml'), 'choose one of'); refused(lambda: load_engine(copy, 'onnx', 'cuda:0'), 'processor')
    import onnx
    graph = onnx.load(copy/'model.onnx'); del graph.metadata_props[:]; onnx.save(graph, copy/'model.onnx')
    refused(lambda: load_engine(copy, 'onnx'), 'madd export')


def test_stale(copy):
    config = read_json(copy/'config.json')
    write_json(copy/'config.json', config | dict(notes=config['notes'] | dict(temperature=3.)))
    for runtime in ('onnx', 'openvino'): refused(lambda: load_engine(copy, runtime), fingerprint(copy), 'makes it anew')
    write_json(copy/'config.json', config); load_engine(copy, 'onnx')
    with open(copy/'model.safetensors', 'r+b') as f: f.seek(-3, os.SEEK_END); f.write(b'\x00\x01\x02')
    refused(lambda: load_engine(copy, 'onnx'), 'makes it anew')


@pytest.mark.parametrize('runtime, name', [('onnx', 'model.onnx'), ('openvino', 'model.xml')])
def test_garbage(copy, runtime, name):
    whole = (copy/name).read_bytes()
    for text in (b'', b'\x00'*1000, b'<xml', whole[:len(whole)//2], os.urandom(5000), b'{"a": 1}'):
        (copy/name).write_bytes(text); refused(lambda: load_engine(copy, runtime), name)


def test_weights_of_openvino_cut_short(copy):
    whole = (copy/'model.bin').read_bytes(); (copy/'model.bin').write_bytes(whole[:1000])
    refused(lambda: load_engine(copy, 'openvino'), 'model.xml')


@pytest.mark.parametrize('note', ['[]', '{}', '{"fingerprint": 1}', 'x', json.dumps(dict(fingerprint='a', notes={}, size='big', batch=None)), json.dumps(dict(fingerprint='a', notes=3, size=112, batch=None)),
                                  json.dumps(dict(fingerprint='a', notes={}, size=-1, batch=None)), json.dumps(dict(fingerprint='a', notes={}, size=112, batch=10**9))])
def test_poisoned_notes(copy, note):
    import onnx
    graph = onnx.load(copy/'model.onnx')
    graph.metadata_props[0].value = note; onnx.save(graph, copy/'model.onnx')
    refused(lambda: load_engine(copy, 'onnx'))


def test_poisoned_thresholds_in_a_graph_are_not_believed(copy):
    "The notes come from config.json, even when the note in the file has the right fingerprint"
    import onnx
    graph = onnx.load(copy/'model.onnx'); entry = graph.metadata_props[0]
    entry.value = json.dumps(json.loads(entry.value) | dict(notes=dict(verdict=dict(low=.98, high=.99, calibrated=True)))); onnx.save(graph, copy/'model.onnx')
    assert load_engine(copy, 'onnx').notes == read_json(copy/'config.json')['notes']


def test_wrong_crops(exported):
    engine = load_engine(exported, 'onnx')
    good = trial_crops(SIZE)
    refused(lambda: engine(good[:, :64, :64]), '--size 64'); refused(lambda: engine(good.astype(np.float32)), 'bytes'); refused(lambda: engine(good[0]), 'batch'); refused(lambda: engine(good[:, :80]), 'side, side')
    flipped = good[:, :, ::-1]; np.testing.assert_allclose(engine(flipped)[0], engine(flipped.copy())[0])   # not contiguous
    assert len(engine(good[:0])[0]) == 0


def test_a_graph_that_fails_later_is_one_sentence(exported):
    engine = load_engine(exported, 'onnx')
    engine.size = None
    refused(lambda: engine(trial_crops(64)), 'failed')


def test_nothing_is_left_of_a_failure(copy, monkeypatch):
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    def half(net, size, batch, path, info): path.write_bytes(b'half'); raise OSError('disk full')
    monkeypatch.setitem(FORMATS, 'onnx', FORMATS['onnx']._replace(write=half))
    with pytest.raises(OSError): export(copy, 'onnx')
    def other(net, size, batch, path, info):
        with torch.no_grad(): next(net.model.attention.parameters()).mul_(1.1)
        ex.write_torchscript(net, size, batch, path, info)
        with torch.no_grad(): next(net.model.attention.parameters()).div_(1.1)
    monkeypatch.setitem(FORMATS, 'torchscript', FORMATS['torchscript']._replace(write=other))
    refused(lambda: export(copy, 'torchscript'), 'not kept')
    after = {p.name: p.read_bytes() for p in copy.iterdir()}
    assert before.keys() == after.keys() and all(before[k] == after[k] for k in before)


def test_a_model_of_nan_is_not_exported(copy):
    model = load(copy)
    with torch.no_grad(): next(model.attention.parameters()).fill_(float('nan'))
    model.save(copy); refused(lambda: export(copy, 'torchscript'), 'not kept')


def test_bad_requests(copy, tmp_path):
    refused(lambda: export(copy, 'tflite'), 'choose one of'); refused(lambda: export(copy, 'onnx', size=8), 'size'); refused(lambda: export(copy, 'onnx', batch=0), 'batch')
    refused(lambda: export(copy, 'onnx', tmp_path/'x.xml'), '.onnx'); refused(lambda: export(tmp_path, 'onnx'), 'config.json')


def test_missing_package(copy, monkeypatch):
    monkeypatch.setattr(ex, 'find_spec', lambda name: None)
    refused(lambda: export(copy, 'onnx'), 'madd[export]'); refused(lambda: load_engine(copy, 'openvino'), 'madd[export]')


def test_fixed_batch_and_another_place(folders, tmp_path):
    path = export(folders/'pyramid', 'torchscript', tmp_path/'a.ts', size=96, batch=3, verbose=False)
    engine = GraphEngine(path, 'torchscript'); crops = trial_crops(96)
    assert path == tmp_path/'a.ts' and (engine.batch, engine.size) == (3, 96)
    np.testing.assert_allclose(engine(crops)[0], TorchEngine(load(folders/'pyramid'), 'cpu')(crops)[0], rtol=1e-3, atol=1e-4)


def test_same_bytes_and_no_network(folders, exported, tmp_path, monkeypatch):
    def no_network(*a, **k): raise AssertionError('an export must not open a connection')
    monkeypatch.setattr(socket.socket, 'connect', no_network)
    again = export(folders/'pyramid', 'onnx', tmp_path, verbose=False)
    assert again.read_bytes() == (exported/'model.onnx').read_bytes()


def test_card_of_hostile_records(copy):
    config = read_json(copy/'config.json')
    bad = '"><script>alert(1)</script>\n---\n# x | y ![p](https://evil.example/p.png)'
    write_json(copy/'config.json', config | dict(weights=bad, notes=config['notes'] | dict(note=bad, trained_on=dict(dataset=[bad]))))
    write_json(copy/'evaluation/results.json', dict(about=dict(data=bad), rows=[dict(model=bad, auc=.5, lo=.4, hi=.6)]))
    text = write_card(copy).read_text()
    assert '<script' not in text and 'https://' not in text and '![p](' not in text and text.count('\n---\n') == 1
    assert 'does not say which weights' in text
    for rows in ('x', [1], {'a': 1}): write_json(copy/'evaluation/results.json', dict(rows=rows)); refused(lambda: write_card(copy))
    write_json(copy/'config.json', config | dict(notes=[1, 2])); refused(lambda: write_card(copy))
