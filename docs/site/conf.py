"""How Sphinx renders the pages that build.py stages: no third-party request, formulas as MathML, light and dark."""
import os, sys
from configparser import ConfigParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
config = ConfigParser(delimiters=['=']); config.read(Path(__file__).resolve().parents[2]/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

project, author, copyright, version = cfg['title'], cfg['author'], cfg['copyright'], cfg['version']
release = version
extensions = ['myst_nb', 'mathml']
html_theme, html_title, html_static_path = 'furo', f'madd {version}', ['_static']
html_css_files = ['madd.css']
html_theme_options = dict(source_repository=cfg['git_url'], source_branch=cfg['branch'], source_directory='nbs/', top_of_page_buttons=[])
html_show_sourcelink = html_copy_source = False
html_baseurl = cfg['doc_host'] + cfg['doc_baseurl'] + '/'

nb_execution_mode = 'off'          # the notebooks are kept executed; the tests run them
nb_ipywidgets_js = {}              # widgets need a kernel; every one has a static twin
nb_merge_streams = True
nb_mime_priority_overrides = [('html', 'application/vnd.jupyter.widget-view+json', None)]
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_heading_anchors = 4
myst_heading_slug_func = 'mathml.slug'     # as Jupyter writes them: spaces become hyphens
myst_links_external_new_tab = False
suppress_warnings = ['mystnb.unknown_mime_type', 'myst.header', 'myst.xref_ambiguous']
exclude_patterns = ['_build']
linkcheck_anchors = False
linkcheck_ignore = [r'https://colab\.research\.google\.com/.*', r'https://nbviewer\.org/.*', cfg['git_url'] + '.*']   # they exist once the repository is public
