"""`python -m embedlm`: the command line, where the script `embedlm` is not on the path."""

from embedlm.cli import main

if __name__ == "__main__":
    main()
