from qvl_edit.cli import main

if __name__ == "__main__":  # spawned workers import this file under another name
    main()
