"""Run ``python -m extproc.demo.standin``."""

from extproc.demo.standin.server import main

raise SystemExit(main())
