from qvl_data.cli import main

main()
