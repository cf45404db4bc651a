"What the tests have in common."


def pytest_configure(config):
    config.addinivalue_line('markers', 'browser: drives a real Chromium; skipped where there is none')
