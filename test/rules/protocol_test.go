// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// mayBeUntested bounds the statements of docs/protocol.md that say [no test].
const mayBeUntested = 3

// TestProtocolStatements wants every statement of docs/protocol.md to name
// tests that exist, or to say that there is none.
func TestProtocolStatements(t *testing.T) {
	tr := loaded(t)
	tests := make(map[string]bool) // "sdk/path TestEnter"
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, name := range tr.source(t) {
		if strings.HasSuffix(name, "_test.go") {
			folder := name[:strings.LastIndexByte(name, '/')]
			for _, m := range function.FindAllStringSubmatch(tr.read(t, name), -1) {
				tests[folder+" "+m[1]] = true
			}
		}
	}
	statement := regexp.MustCompile(`(?ms)^\*\*P-(\d+)\*\* (.*?)(?:\n\n|\z)`)
	reference := regexp.MustCompile(`\[([a-z0-9/]+) ((?:Test|Fuzz)\w+(?:, (?:Test|Fuzz)\w+)*)\]`)
	last := 0
	var untested []string
	for _, m := range statement.FindAllStringSubmatch(tr.read(t, "docs/protocol.md"), -1) {
		n, _ := strconv.Atoi(m[1])
		if n <= last {
			t.Errorf("P-%d comes after P-%d", n, last)
		}
		last = n
		found := reference.FindAllStringSubmatch(m[2], -1)
		if len(found) == 0 {
			untested = append(untested, "P-"+m[1])
			if !strings.HasSuffix(strings.TrimSpace(m[2]), "[no test]") {
				t.Errorf("P-%d names neither a test nor [no test]", n)
			}
		}
		for _, r := range found {
			for _, test := range strings.Split(r[2], ", ") {
				if !tests[r[1]+" "+test] {
					t.Errorf("P-%d: there is no %s in %s", n, test, r[1])
				}
			}
		}
	}
	if last < 50 {
		t.Errorf("docs/protocol.md has %d statements; did its form change?", last)
	}
	if slices.Sort(untested); len(untested) > mayBeUntested {
		t.Errorf("%d statements are tested by nobody, at most %d may be: %v", len(untested), mayBeUntested, untested)
	}
}
