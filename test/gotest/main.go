// SPDX-License-Identifier: Apache-2.0

// Command gotest runs go test with the given arguments and reports so that
// nothing hides: a line per package as it ends, the whole output of what failed,
// and in the end what tests have measured (lines that begin with MEASURED:) and
// every skipped test with the reason it gave. A test that skips without a reason
// fails the run.
//
//	go run ./test/gotest -race ./...
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

func main() {
	cmd := exec.Command("go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
		os.Exit(2)
	}
	r := report{w: os.Stdout, output: make(map[test][]string)}
	r.read(out)
	err = cmd.Wait()
	r.summary()
	if err != nil || len(r.silent) > 0 {
		os.Exit(1)
	}
}

// test is one test, or a whole package if name is empty.
type test struct{ pkg, name string }

// event is what test2json prints, see go doc test2json.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// report is what a run has told so far.
type report struct {
	w      io.Writer
	output map[test][]string // of what has not ended yet

	passed, failed, packages int
	skipped                  map[string][]string // names of tests by reason
	notes                    []string            // lines that say SKIPPED outside of any test
	figures                  []string            // lines that say MEASURED
	silent                   []string            // skipped without a reason
}

func (r *report) read(in io.Reader) {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(r.w, line)
			} else {
				r.event(e)
			}
		}
		if err != nil {
			return
		}
	}
}

func (r *report) event(e event) {
	t := test{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.w, e.Output)
	case "output":
		r.output[t] = append(r.output[t], e.Output)
		if strings.HasPrefix(e.Output, "SKIPPED:") {
			r.notes = append(r.notes, short(e.Package)+": "+strings.TrimSpace(e.Output))
		}
		if strings.HasPrefix(e.Output, "MEASURED:") {
			r.figures = append(r.figures, strings.TrimSpace(e.Output))
		}
		return
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.packageEnded(e.Action, t)
		} else {
			r.testEnded(e.Action, t)
		}
		delete(r.output, t)
	}
}

// testEnded counts a test; subtests count as tests of their own.
func (r *report) testEnded(action string, t test) {
	switch action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
		fmt.Fprint(r.w, strings.Join(r.output[t], ""))
	case "skip":
		name := short(t.pkg) + " " + t.name
		why := reason(r.output[t])
		if why == "" {
			r.silent = append(r.silent, name)
			return
		}
		if r.skipped == nil {
			r.skipped = make(map[string][]string)
		}
		r.skipped[why] = append(r.skipped[why], name)
	}
}

// packageEnded prints go test's own line about a package, and all it said if
// it failed.
func (r *report) packageEnded(action string, t test) {
	if action == "skip" {
		return // no test files
	}
	r.packages++
	for _, line := range r.output[t] {
		if action == "fail" && line != "FAIL\n" || strings.HasPrefix(line, "ok  ") {
			fmt.Fprint(r.w, line)
		}
	}
	if action != "fail" {
		return
	}
	for other, lines := range r.output { // what ran when the process died
		if other.pkg == t.pkg && other.name != "" {
			fmt.Fprint(r.w, strings.Join(lines, ""))
			delete(r.output, other)
		}
	}
}

func (r *report) summary() {
	fmt.Fprintf(r.w, "%d tests passed, %d failed, %d skipped in %d packages\n", r.passed, r.failed, r.countSkipped(), r.packages)
	for _, figure := range r.figures {
		fmt.Fprintln(r.w, figure)
	}
	slices.Sort(r.notes)
	for _, note := range slices.Compact(r.notes) {
		fmt.Fprintln(r.w, note)
	}
	type skip struct {
		why   string
		names []string
	}
	var skips []skip
	for why, names := range r.skipped {
		skips = append(skips, skip{why, names})
	}
	slices.SortFunc(skips, func(a, b skip) int { return cmp.Compare(a.names[0], b.names[0]) })
	for _, s := range skips {
		more := ""
		if n := len(s.names) - 1; n > 0 {
			more = fmt.Sprintf(" (and %d more)", n)
		}
		fmt.Fprintf(r.w, "SKIPPED: %s%s: %s\n", s.names[0], more, s.why)
	}
	for _, name := range r.silent {
		fmt.Fprintf(r.w, "FAIL: %s was skipped and does not say why\n", name)
	}
}

func (r *report) countSkipped() int {
	n := len(r.silent)
	for _, names := range r.skipped {
		n += len(names)
	}
	return n
}

var logged = regexp.MustCompile(`^ +[\w.-]+\.go:\d+: (.+)`)

// reason returns the last line that a test has logged.
func reason(output []string) (why string) {
	for _, line := range output {
		if m := logged.FindStringSubmatch(line); m != nil {
			why = m[1]
		}
	}
	return why
}

// short is the package without the module's prefix.
func short(pkg string) string { return strings.TrimPrefix(pkg, "github.com/openvwire/nsm/") }
