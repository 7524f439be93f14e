"""
What is said before the first job and after the last one.
"""


onstart:
    stop_without_server()


onsuccess:
    say_how_to_chat()


onerror:
    say_what_failed()
