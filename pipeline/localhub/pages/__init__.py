"""The loopback Hub for people: its repositories as pages, to look at and not to change.

``site`` knows visitors and renders, ``views`` has one function for each page, ``card`` makes safe HTML of a README,
``versions`` checks the releases of a repository. Nothing here runs in a browser: there is no script.
"""
