"""All SQL: the job database, its migrations, and what is forgotten after a while."""
