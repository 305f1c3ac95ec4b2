"""``python -m holdfast``, which launchers such as ``torchrun -m holdfast`` need."""

from holdfast.cli import main

if __name__ == "__main__":
    main()
