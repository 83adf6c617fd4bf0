"""Weak pictures are found without reading all jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("jobs_weak", "jobs", ["updated"], sqlite_where=sa.text("verdict = 'weak'"))


def downgrade() -> None:
    op.drop_index("jobs_weak", "jobs")
