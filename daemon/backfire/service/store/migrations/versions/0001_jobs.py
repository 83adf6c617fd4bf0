"""Jobs, their append-only events, and facts."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ACTIVE = "('published', 'publishing', 'ready', 'running', 'settling', 'waiting_mask')"


def upgrade() -> None:
    op.create_table(
        "jobs",
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
        sqlite_autoincrement=True,
    )
    op.create_index(
        "jobs_active_path", "jobs", ["path"], unique=True, sqlite_where=sa.text(f"state IN {ACTIVE}")
    )
    op.create_index("jobs_path", "jobs", ["path"])
    op.create_index("jobs_state", "jobs", ["state", "id", "not_before"])
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("job_id", sa.Integer, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("events_job", "events", ["job_id"])
    op.create_table(
        "facts",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.execute(
        "CREATE TRIGGER events_stay BEFORE UPDATE ON events "
        "BEGIN SELECT raise(ABORT, 'events are append-only'); END"
    )
    # When a job is pruned the cascade runs after its row is gone: only that may delete events.
    op.execute(
        "CREATE TRIGGER events_go_with_their_job BEFORE DELETE ON events "
        "WHEN EXISTS (SELECT 1 FROM jobs WHERE id = OLD.job_id) "
        "BEGIN SELECT raise(ABORT, 'events are append-only'); END"
    )


def downgrade() -> None:
    op.drop_table("facts")
    op.drop_table("events")
    op.drop_table("jobs")
