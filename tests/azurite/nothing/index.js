// In place of packages that the tests must not or need not have (../package.json).
