"""A job that is being set aside has a state of its own; it used to be `publishing` with an error code."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BEFORE = "('published', 'publishing', 'ready', 'running', 'settling', 'waiting_mask')"
ACTIVE = "('published', 'publishing', 'ready', 'running', 'setting_aside', 'settling', 'waiting_mask')"


def _index(active: str) -> None:
    """The index that allows a path one active job at a time; its condition names the active states."""
    op.drop_index("jobs_active_path", "jobs")
    op.create_index(
        "jobs_active_path", "jobs", ["path"], unique=True, sqlite_where=sa.text(f"state IN {active}")
    )


def upgrade() -> None:
    op.execute("UPDATE jobs SET state = 'setting_aside' WHERE state = 'publishing' AND code IS NOT NULL")
    _index(ACTIVE)


def downgrade() -> None:
    op.execute("UPDATE jobs SET state = 'publishing' WHERE state = 'setting_aside'")
    _index(BEFORE)
