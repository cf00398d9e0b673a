"""``python -m s3pet``."""

from s3pet.cli import main

raise SystemExit(main())
