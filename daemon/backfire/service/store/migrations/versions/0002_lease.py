"""Leases that fence off late results; finished jobs are found by their key and by their age."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("lease", sa.Integer, nullable=False, server_default="0"))
    op.create_index("jobs_key", "jobs", ["key"])
    op.create_index("jobs_updated", "jobs", ["updated"])


def downgrade() -> None:
    op.drop_index("jobs_updated", "jobs")
    op.drop_index("jobs_key", "jobs")
    op.drop_column("jobs", "lease")
