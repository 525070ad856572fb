"""From evidence to a verified release: package the tree, scan it, sign it, push it, download it again and check it.

``package.run`` and ``push.run`` are stages; ``push`` and the command ``verify`` both call ``verify.verify_release``.
The command line imports none of it when it starts, and only ``config`` when it reads a recipe.
"""
