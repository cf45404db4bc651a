"Everything that describes the package stands in settings.ini; this file only hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_namespace_packages, setup

config = ConfigParser(delimiters=['='])
config.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
words = lambda key: cfg.get(key, '').split()

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(Path(__file__).parent/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    keywords=cfg['keywords'],
    license='Apache-2.0',
    packages=find_namespace_packages(include=['madd', 'madd.*'], exclude=['*.__pycache__']),   # madd.movies and madd.weights hold only data
    package_data={'madd': words('package_data')},
    install_requires=words('requirements'),
    extras_require={'dev': words('dev_requirements')} | {key.removeprefix('extra_'): words(key) for key in cfg if key.startswith('extra_')},
    python_requires='>=' + cfg['min_python'],
    entry_points={'console_scripts': words('console_scripts'), 'nbdev': ['madd=madd._modidx:d']},
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research',
                 'Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    zip_safe=False,
)
