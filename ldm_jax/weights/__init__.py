"""Weight files of other libraries, and tables of their names; numpy only."""
