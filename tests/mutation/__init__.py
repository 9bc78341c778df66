"""Do the tests of the pure cores notice when the code is wrong?"""
