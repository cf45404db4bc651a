"Model folders that are hostile, damaged or written while something fails, and the loss on two processes"
import json, os, pickle, socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from madd import model as madd_model
from madd.core import UserError
from madd.export import fingerprint
from madd.model import DEFAULT, WEIGHTS, MADD, PlainDetector, bundled, load, model_folder
from madd.ril import RegionalIndependenceLoss

SMALL = 'tf_efficientnet_lite0'


@pytest.fixture(scope='module')
def plain():
    torch.manual_seed(0)
    return PlainDetector(SMALL, pretrained=False).eval()


@pytest.fixture
def folder(plain, tmp_path):
    plain.save(tmp_path/'model')
    return tmp_path/'model'


def refused(path, *words):
    with pytest.raises(UserError) as e: load(path)
    text = str(e.value)
    assert '\n' not in text, text
    for w in words: assert w in text, text


class Boom:
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.mkdir, (self.mark,)


def test_a_pickle_is_never_opened(folder, tmp_path):
    mark = tmp_path/'executed'
    evil = pickle.dumps(Boom(str(mark)))
    (folder/'model.safetensors').write_bytes(evil)
    refused(folder, 'safetensors')
    (tmp_path/'model.pth').write_bytes(evil)
    refused(tmp_path/'model.pth', 'madd convert')
    (folder/'model.safetensors').unlink()
    (folder/'pytorch_model.bin').write_bytes(evil)
    refused(folder, 'no model.safetensors', 'pickle')
    assert not mark.exists()


def test_missing_pieces(tmp_path, folder):
    refused(tmp_path/'nowhere'/'at'/'all', 'no folder')
    refused(tmp_path, 'config.json', 'model.safetensors')
    (folder/'config.json').unlink()
    refused(folder, 'no config.json')


@pytest.mark.parametrize('text', ['', '[]', '3', 'null', '{"model": "MADD"', '{}', '{"model": "os.system", "format": 1}', '{"model": ["MADD"], "format": 1}'])
def test_config_that_is_no_config(folder, text):
    (folder/'config.json').write_text(text)
    refused(folder, 'config.json')


@pytest.mark.parametrize('change', [dict(format='1'), dict(format=None), dict(format=2), dict(backbone='resnet18'), dict(backbone=7), dict(backbone='hf-hub:someone/net'),
                                    dict(num_classes=-1), dict(num_classes='two'), dict(num_classes=3), dict(settings=[1]), dict(settings={'dropout': 'lots'}),
                                    dict(settings={'hidden': 3}), dict(n_maps=4), dict(notes=3, settings={'dropout': 2.})])
def test_config_with_strange_entries(folder, change):
    config = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps(config | change))
    refused(folder)


@pytest.mark.parametrize('change', [dict(n_maps='4'), dict(n_maps=10**9), dict(n_maps=True), dict(recipe='none'), dict(recipe=[]), dict(texture_stage=2), dict(settings={'attention': 'eval'}),
                                    dict(settings={'attention': []}), dict(settings={'hidden': -1}), dict(settings={'hidden': 10**12}), dict(settings={'map_drop': 'x'})])
def test_madd_config_with_strange_entries(tmp_path, change):
    config = MADD(SMALL, pretrained=False).config
    (tmp_path/'config.json').write_text(json.dumps(config | change))
    (tmp_path/'model.safetensors').write_bytes(b'')
    refused(tmp_path)


@pytest.mark.parametrize('keep', [0, 7, 8, 1000, -1])
def test_truncated_weights(folder, keep):
    whole = (folder/'model.safetensors').read_bytes()
    (folder/'model.safetensors').write_bytes(whole[:keep])
    refused(folder, 'damaged')


def test_weights_of_another_model(folder, tmp_path):
    MADD(SMALL, pretrained=False).save(tmp_path/'other')
    (tmp_path/'other'/'model.safetensors').replace(folder/'model.safetensors')
    refused(folder, 'do not fit', 'missing: head.linear', 'not expected: attention')


def test_a_failed_save_leaves_the_old_model_whole(folder, plain, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    def half_written(state, path):
        with open(path, 'wb') as f: f.write(b'half')
        raise OSError('disk full')
    monkeypatch.setattr(madd_model, 'save_file', half_written)
    with pytest.raises(OSError): plain.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before      # nothing lost, nothing left over


def test_save_refuses_a_file_and_replaces_a_model(folder, plain, tmp_path):
    (tmp_path/'taken').write_text('mine')
    with pytest.raises(UserError): plain.save(tmp_path/'taken')
    other = PlainDetector(SMALL, pretrained=False)
    other.notes['size'] = 99
    other.save(folder)
    again = load(folder)
    assert again.notes == {'size': 99} and torch.equal(again.head.linear.weight, other.head.linear.weight)


def test_channels_last_and_odd_layouts_can_be_saved(plain, tmp_path):
    x = torch.randn(1, 3, 64, 64)
    PlainDetector.save(plain.to(memory_format=torch.channels_last), tmp_path)
    torch.testing.assert_close(load(tmp_path)(x), plain(x), rtol=1e-4, atol=1e-5)


def test_hub_name_without_a_network_fails_at_once(monkeypatch):
    monkeypatch.setattr(madd_model, 'answers', lambda *a, **k: False)
    monkeypatch.chdir('/')
    refused('nobody-in-particular/no-such-model', 'Hugging Face')


def test_hub_failures_are_one_sentence(monkeypatch):
    import huggingface_hub
    def gone(*a, **k): raise ValueError('404 not found\nlong text')
    monkeypatch.setattr(madd_model, 'answers', lambda *a, **k: True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', gone)
    refused('nobody-in-particular/no-such-model', '404')


def test_hub_folder_is_loaded(monkeypatch, folder, plain):
    import huggingface_hub
    monkeypatch.setattr(madd_model, 'answers', lambda *a, **k: True)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda name, **k: str(folder))
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(load('someone/model')(x), plain(x))


# -- the loss on two processes ---------------------------------------------------------------------

def ril_batch():
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 4, generator=g, dtype=torch.float64)*.3, torch.tensor([0, 1, 1, 0, 1, 0])


def ril_worker(rank, port, out):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    dist.init_process_group('gloo', rank=rank, world_size=2)
    V, y = ril_batch()
    part = V[rank::2].clone().requires_grad_()
    ril = RegionalIndependenceLoss(3, 4).double()
    for _ in range(2): loss = ril(part, y[rank::2])
    loss.backward()
    torch.save(dict(loss=loss.detach(), centers=ril.centers, grad=part.grad), f'{out}/{rank}.pt')
    dist.destroy_process_group()


def test_two_processes_share_their_centres(tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    mp.spawn(ril_worker, (port, str(tmp_path)), nprocs=2)
    a, b = (torch.load(tmp_path/f'{r}.pt', weights_only=True) for r in (0, 1))
    V, y = ril_batch()
    V.requires_grad_()
    ril = RegionalIndependenceLoss(3, 4).double()
    for _ in range(2): loss = ril(V, y)
    loss.backward()
    torch.testing.assert_close(a['centers'], b['centers'], rtol=0, atol=0)   # no drift between the workers
    torch.testing.assert_close(a['centers'], ril.centers)                    # and the same as with one worker
    torch.testing.assert_close((a['loss'] + b['loss'])/2, loss.detach())
    both = torch.empty_like(V); both[0::2], both[1::2] = a['grad'], b['grad']
    torch.testing.assert_close(both/2, V.grad)                               # averaged over workers, as data-parallel training does


# --- half precision, and the weights in the box ---

def test_half_is_half_and_answers_alike(plain, tmp_path):
    plain.save(tmp_path/'whole'); plain.save(tmp_path/'half', half=True)
    sizes = [(tmp_path/k/'model.safetensors').stat().st_size for k in ('whole', 'half')]
    assert .49 < sizes[1]/sizes[0] < .54 and json.loads((tmp_path/'half'/'config.json').read_text())['stored'] == 'float16'
    whole, half, x = load(tmp_path/'whole'), load(tmp_path/'half'), torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))*2 - 1
    assert {t.dtype for t in half.state_dict().values()} == {torch.float32, torch.int64}
    with torch.no_grad(): assert 0 < (whole(x).softmax(1) - half(x).softmax(1)).abs().max() < 1e-3
    half.save(tmp_path/'again'); assert 'stored' not in (tmp_path/'again'/'config.json').read_text() and torch.equal(load(tmp_path/'again')(x), half(x))


def test_half_refuses_what_would_become_infinite(tmp_path):
    net = PlainDetector(SMALL, pretrained=False)
    with torch.no_grad(): net.head.linear.weight[0, 0] = 70_000.
    with pytest.raises(UserError, match='head.linear.weight'): net.save(tmp_path/'m', half=True)
    assert not (tmp_path/'m').exists()


def test_names_of_the_box(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert DEFAULT in bundled() and model_folder(DEFAULT) == WEIGHTS/DEFAULT and not load(DEFAULT).training
    refused('madd-lite2', DEFAULT, 'no folder')
    (tmp_path/DEFAULT).mkdir(); refused(DEFAULT, 'config.json')          # a folder of that name is meant, also when it is empty
    plain.save(DEFAULT); assert isinstance(load(DEFAULT), PlainDetector)


def test_weights_in_the_box_are_small_and_known():
    for name in bundled():
        folder = WEIGHTS/name
        assert {p.name for p in folder.iterdir()} >= {'config.json', 'model.safetensors', 'README.md'}
        text = (folder/'README.md').read_text()
        assert fingerprint(name) in text and 'license: apache-2.0' in text and str(Path.home()) not in text
        config = json.loads((folder/'config.json').read_text())
        assert config['stored'] == 'float16' and {'size', 'margin', 'trained_on'} <= config['notes'].keys()
    assert sum(p.stat().st_size for p in (WEIGHTS/DEFAULT).iterdir()) <= 15e6
