// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"flag"
	"fmt"
	"go/ast"
	"go/types"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/openvwire/nsm/sdk/nserr"
)

var update = flag.Bool("update", false, "write docs/errors.md anew")

// retired are the codes that once had a meaning and must not get another.
var retired = map[string]string{}

// TestReasons checks the vocabulary of errors: scripts rely on it.
func TestReasons(t *testing.T) {
	code := regexp.MustCompile(`^NSM-[1-9]\d{3}$`)
	last := ""
	for _, r := range nserr.Reasons {
		switch {
		case !code.MatchString(r.Code):
			t.Errorf("%q is not NSM- and four digits", r.Code)
		case r.Code == last:
			t.Errorf("%s is used twice", r.Code)
		case r.Code < last:
			t.Errorf("%s comes after %s", r.Code, last)
		case retired[r.Code] != "":
			t.Errorf("%s meant %q once", r.Code, retired[r.Code])
		case r.GRPC == codes.OK || r.GRPC == codes.Unknown || r.GRPC > codes.Unauthenticated:
			t.Errorf("%s travels as %s", r.Code, r.GRPC)
		case r.Summary == "" || r.Fix == "" || strings.HasSuffix(r.Summary, ".") || strings.HasSuffix(r.Fix, "."):
			t.Errorf("%s needs a summary and a fix, without full stops: %q, %q", r.Code, r.Summary, r.Fix)
		case nserr.ByCode(r.Code) != r:
			t.Errorf("ByCode(%q) is another reason", r.Code)
		}
		last = r.Code
	}
}

// TestReasonsAreUsed wants every reason to be somebody's: what nobody returns
// only misleads readers of the list.
func TestReasonsAreUsed(t *testing.T) {
	tr := loaded(t)
	used := make(map[string]bool)
	for _, p := range tr.packages {
		if p.rel() == "sdk/nserr" || strings.HasPrefix(p.rel(), "test/") || !slices.Contains(p.Imports, module+"/sdk/nserr") {
			continue
		}
		for _, name := range p.GoFiles {
			ast.Inspect(tr.file(t, filepath.Join(p.Dir, name)), func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok {
					if x, ok := sel.X.(*ast.Ident); ok && x.Name == "nserr" {
						used[sel.Sel.Name] = true
					}
				}
				return true
			})
		}
	}
	pkg, _, _ := tr.check(t, tr.all[module+"/sdk/nserr"])
	for _, name := range pkg.Scope().Names() {
		v, ok := pkg.Scope().Lookup(name).(*types.Var)
		if ok && strings.HasSuffix(v.Type().String(), "nserr.Reason") && strings.HasPrefix(v.Type().String(), "*") && !used[name] && name != "Internal" {
			t.Errorf("nserr.%s is returned by nobody", name)
		}
	}
}

// TestErrorsDocument keeps docs/errors.md what the vocabulary says.
func TestErrorsDocument(t *testing.T) {
	const name = "docs/errors.md"
	want := errorsDocument()
	if *update {
		if err := os.WriteFile(filepath.Join("../..", name), []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := loaded(t).read(t, name); got != want {
		t.Errorf("%s is not what sdk/nserr/reasons.go says; run: go test ./test/rules -update", name)
	}
}

func errorsDocument() string {
	var b strings.Builder
	b.WriteString(`# Errors

<!-- Written by go test ./test/rules -update from sdk/nserr/reasons.go; do not edit. -->

An error that crosses a boundary of the mesh has a reason: a code that stays what it is for ever, the gRPC code it
travels under, and what to do about it. On the wire the code is a ` + "`google.rpc.ErrorInfo`" + ` with the domain ` + "`" + nserr.Domain + "`" + `, the
fix its metadata ` + "`fix`" + `. Every ` + "`nsm`" + ` command prints code, what happened and fix in one line, and ends with

| exit code | gRPC code |
|---|---|
| 2 | InvalidArgument; a wrong command line |
| 3 | NotFound |
| 4 | PermissionDenied |
| 5 | Unauthenticated, Unavailable, DeadlineExceeded |
| 1 | any other |

In Go: ` + "`errors.Is(err, nserr.UnknownService)`" + `, on either side of a call.
`)
	titles := map[byte]string{'1': "What is wrong with the message", '2': "Who asks", '3': "What was asked for", '4': "What this machine could not do"}
	group := byte(0)
	for _, r := range nserr.Reasons {
		if g := r.Code[len("NSM-")]; g != group {
			group = g
			fmt.Fprintf(&b, "\n## %s\n\n| code | gRPC | what went wrong | how to fix it |\n|---|---|---|---|\n", titles[g])
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.Code, r.GRPC, r.Summary, strings.ReplaceAll(r.Fix, "|", `\|`))
	}
	return b.String()
}
