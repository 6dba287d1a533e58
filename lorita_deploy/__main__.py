"""``python -m lorita_deploy`` is ``lorita-deploy``."""

from .cli import main

main()
