"""The status page: reads the job database and the receipts, and asks for actions as the commands do.

It is a process of its own, started by `backfire page`, so that the daemon needs no network and no page can
keep it from its work. That process decodes no picture and writes to no database: a helper process draws
(`paint`), and each action is a command of its own (`actions`). So it stays small, and a hostile picture
cannot harm it.
"""
