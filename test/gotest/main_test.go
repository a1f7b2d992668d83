// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const pkg = "github.com/openvwire/nsm/sdk/x"
	var in strings.Builder
	say := func(action, test, output string) {
		fmt.Fprintf(&in, `{"Action":%q,"Package":%q,"Test":%q,"Output":%q}`+"\n", action, pkg, test, output)
	}
	in.WriteString("# not JSON\n")
	say("output", "", "SKIPPED: no namespaces\n")
	say("output", "TestGood", "a word\n")
	say("output", "TestGood", "MEASURED: 7 ms\n")
	say("pass", "TestGood", "")
	say("output", "TestBad", "    x_test.go:7: it broke\n")
	say("fail", "TestBad", "")
	say("output", "TestNotHere", "    x_test.go:9: needs a moon\n")
	say("skip", "TestNotHere", "")
	say("skip", "TestShy", "")
	say("output", "TestHangs", "panic: too long\n")
	say("output", "", "FAIL\n")
	say("output", "", "FAIL\tsdk/x\t1s\n")
	say("fail", "", "")

	var out strings.Builder
	r := report{w: &out, output: make(map[test][]string)}
	r.read(strings.NewReader(in.String()))
	r.summary()
	want := `# not JSON
    x_test.go:7: it broke
SKIPPED: no namespaces
FAIL	sdk/x	1s
panic: too long
1 tests passed, 1 failed, 2 skipped in 1 packages
MEASURED: 7 ms
sdk/x: SKIPPED: no namespaces
SKIPPED: sdk/x TestNotHere: needs a moon
FAIL: sdk/x TestShy was skipped and does not say why
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
	if len(r.silent) != 1 {
		t.Errorf("a test that skips without a reason is not counted: %v", r.silent)
	}
}
