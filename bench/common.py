"""What every results file says about itself: when, where, with what, and by which command."""
import datetime, os, platform, shlex, sys


def cpu():
    "The name of the processor"
    try: return next(l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
    except (OSError, StopIteration): return platform.processor() or platform.machine()


def command():
    "The command line of this program, as it would be typed in the repository's root"
    return shlex.join(['python', os.path.relpath(sys.argv[0]), *sys.argv[1:]])


def today(): return datetime.date.today().isoformat()
