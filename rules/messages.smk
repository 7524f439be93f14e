"""
What is said before the first job and after the last one.
"""


onstart:
    stop_without_server()
    begin_run()


onsuccess:
    store_provenance()
    say_how_to_chat()


onerror:
    store_provenance()
    say_what_failed()
