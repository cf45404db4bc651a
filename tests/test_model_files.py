"Model folders that are hostile, damaged or written while something fails, and the loss on two processes"
import json, os, pickle, socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from madd import model as madd_model
from madd.core import UserError
from madd.model import MADD, PlainDetector, load
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
