"""From evidence to a verified release: package the tree, scan it, sign it, push it, download it again and check it.

``package.run`` and ``push.run`` are stages; ``verify.verify`` is also what ``python -m pipeline verify`` calls.
Nothing here is imported with the command line but ``config`` and ``licence``.
"""
