"""Sphinx extension: formulas become MathML, which every current browser draws by itself; and the anchors of headings."""
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

log = logging.getLogger(__name__)


def slug(heading): return heading.strip().replace(' ', '-')


def mathml(self, node, display):
    latex = node.astext()
    try: return convert(latex, display=display)
    except Exception as e:
        log.warning('formula %r is not understood: %s', latex, e, location=node)
        return f'<code>{self.encode(latex)}</code>'


def inline(self, node):
    self.body.append(mathml(self, node, 'inline'))
    raise nodes.SkipNode


def block(self, node):
    number = f'<span class="eqno">({node["number"]})</span>' if node.get('number') else ''
    self.body.append(f'<div class="math">{number}{mathml(self, node, "block")}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer('mathml', (inline, None), (block, None))
    app.config.html_math_renderer = 'mathml'
    return dict(version='1', parallel_read_safe=True, parallel_write_safe=True)
