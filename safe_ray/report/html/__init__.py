"""`report.html`: a sweep as one page that needs nothing but itself."""
