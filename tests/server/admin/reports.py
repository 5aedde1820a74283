"""The status report of an idle server."""

from extproc.server.admin.status import StatusReporter
from extproc.server.observe.metrics import Metrics
from extproc.server.observe.recent import RecentDecisions
from extproc.server.observe.report import StatusReport
from extproc.server.observe.timeline import Timeline

from ..in_force import make_in_force


def status_report() -> StatusReport:
    in_force = make_in_force()
    metrics, recent = Metrics(), RecentDecisions(in_force, lambda: 100.0)
    timeline = Timeline(metrics, recent, lambda: 100.0)
    return StatusReporter(
        in_force, metrics, recent, timeline, lambda: True, lambda: 100.0
    ).report()
