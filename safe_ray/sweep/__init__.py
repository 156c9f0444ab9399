"""One sweep, in the order in which it does things: data, images, tasks, search, test, report."""
