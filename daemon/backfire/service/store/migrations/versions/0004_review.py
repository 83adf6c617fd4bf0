"""Pictures that are held for review, and what a person decided about them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BEFORE = "('published', 'publishing', 'ready', 'running', 'setting_aside', 'settling', 'waiting_mask')"
ACTIVE = (
    "('holding', 'published', 'publishing', 'ready', 'releasing', 'running', 'setting_aside', 'settling', "
    "'waiting_mask')"
)


def _index(active: str) -> None:
    """The index that allows a path one active job at a time; its condition names the active states."""
    op.drop_index("jobs_active_path", "jobs")
    op.create_index(
        "jobs_active_path", "jobs", ["path"], unique=True, sqlite_where=sa.text(f"state IN {active}")
    )


def upgrade() -> None:
    op.add_column("jobs", sa.Column("choice", sa.Text))
    _index(ACTIVE)


def downgrade() -> None:
    # What is held lies in no folder that the older version knows; it is a failure there, with its reason.
    op.execute("UPDATE jobs SET state = 'failed' WHERE state IN ('holding', 'releasing', 'review')")
    _index(BEFORE)
    op.drop_column("jobs", "choice")
