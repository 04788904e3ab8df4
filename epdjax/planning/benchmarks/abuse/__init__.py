"""One bad client beside good ones: do these notice?"""
