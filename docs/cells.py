"""What the writers of pages and the checks ask of a notebook cell."""


def directives(cell):
    "The nbdev directives of a cell, such as {'hide', 'echo:false'}"
    return {line[2:].replace(' ', '') for line in cell.source.splitlines() if line.startswith('#|')}
