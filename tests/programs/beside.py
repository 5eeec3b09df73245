"""What a mule or the spooler of uWSGI runs: it ends a step."""

import uwsgi  # type: ignore[import-untyped]  # -- it is there inside of uWSGI only
from application import end_step

end_step("beside")
if uwsgi.mule_id():  # a mule whose script ends is started again
    uwsgi.mule_get_msg()
