def page(entries, baseline):
    return ""
