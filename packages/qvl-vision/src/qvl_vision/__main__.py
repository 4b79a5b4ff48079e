from qvl_vision.cli import main

if __name__ == "__main__":
    main()
