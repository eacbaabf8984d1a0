"""A private Slurm of several nodes on one machine.

    cluster     the API: up, down, status, run, node
    state       which sandbox is up; cheap enough for every command
    spec        what was asked, checked; which packages that needs
    root        the one directory a sandbox writes to
    slurm_conf  the text of every configuration file; pure
    launch      the caller's side: starts the holder in its namespaces, waits for it, ends it
    holder      process 1 of those namespaces: starts everything, reaps, obeys
    network, nodes, accounting, linux   what the holder uses

One holder per sandbox lives in its own network, mount, host name, IPC and process namespaces (and, for an ordinary
user, a user namespace), so the machine's network is untouched and the kernel ends every process of the sandbox with the
holder, also after `kill -9`.
"""
