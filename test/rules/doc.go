// SPDX-License-Identifier: Apache-2.0

// Package rules holds the house rules that a machine can keep: who may import
// whom, what every file must have, that documents and code say the same. Each
// rule is a test and says in its failure, or beside its row, why it is one.
//
//	go test ./test/rules            # check
//	go test ./test/rules -update    # write docs/errors.md anew
package rules
