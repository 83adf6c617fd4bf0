"""The tables of the job database and the migrations that make them.

The tables here are what the scripts in `migrations/` make up to `HEAD`. Triggers that those scripts
add keep the events append-only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from backfire.types import ACTIVE

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0005"
"""The newest migration; revisions are numbers of four digits, so that they compare as text."""

metadata = sa.MetaData()

# Text and not JSON or Enum types: SQLite gives a column declared JSON numeric affinity.
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("path", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("input_sha256", sa.Text),
    sa.Column("mask_sha256", sa.Text),
    sa.Column("config_sha256", sa.Text),
    sa.Column("output_path", sa.LargeBinary),
    sa.Column("output_sha256", sa.Text),
    sa.Column("verdict", sa.Text),
    sa.Column("code", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("not_before", sa.Float, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("updated", sa.Float, nullable=False),
    sa.Column("lease", sa.Integer, nullable=False, server_default="0"),
    sa.Column("choice", sa.Text),
    sqlite_autoincrement=True,  # an id is never given twice, not even after pruning
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.Integer, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)
facts = sa.Table(
    "facts",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
sa.Index(
    "jobs_active_path",
    jobs.c.path,
    unique=True,
    sqlite_where=jobs.c.state.in_(sorted(ACTIVE)),
)
sa.Index("jobs_path", jobs.c.path)
sa.Index("jobs_key", jobs.c.key)
sa.Index("jobs_updated", jobs.c.updated)
sa.Index("jobs_weak", jobs.c.updated, sqlite_where=jobs.c.verdict == "weak")
sa.Index("jobs_state", jobs.c.state, jobs.c.id, jobs.c.not_before)
sa.Index("events_job", events.c.job_id)


def revision(connection: sa.Connection) -> str | None:
    """The migration that the database is at, None where it has none of our tables."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()


def upgrade(connection: sa.Connection) -> None:
    """Run the missing migrations within the transaction that is open."""
    from alembic import command

    command.upgrade(alembic_config(connection), "head")


def alembic_config(connection: sa.Connection) -> Config:
    """What alembic's commands need to work on a connection; no ini file, no logging set-up."""
    from alembic.config import Config

    config = Config(attributes={"connection": connection, "metadata": metadata})
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config
