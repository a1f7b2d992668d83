// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"go/ast"
	"go/constant"
	"go/types"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestLogFields wants log lines to use the field names of docs/logging.md and
// no others, so that one query finds a connection in the logs of all parts. A
// name that nobody uses any more has to leave the document.
func TestLogFields(t *testing.T) {
	tr := loaded(t)
	documented := make(map[string]bool)
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(tr.read(t, "docs/logging.md"), -1) {
		if documented[m[1]] {
			t.Errorf("docs/logging.md has %q twice", m[1])
		}
		documented[m[1]] = true
	}
	used := make(map[string]string) // where, by name
	for _, p := range tr.packages {
		if strings.HasPrefix(p.rel(), "test/") || !slices.Contains(p.Imports, "log/slog") {
			continue
		}
		_, files, info := tr.check(t, p)
		for _, f := range files {
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				for _, key := range fields(info, call) {
					value := info.Types[key].Value
					if value == nil || value.Kind() != constant.String {
						t.Errorf("%s: the name of a log field is not a constant", tr.at(key))
						continue
					}
					name := constant.StringVal(value)
					used[name] = tr.at(key)
					if !documented[name] {
						t.Errorf("%s: log field %q is not in docs/logging.md", tr.at(key), name)
					}
				}
				return true
			})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(documented)) {
		if used[name] == "" {
			t.Errorf("docs/logging.md: no log line has a field %q", name)
		}
	}
}

// fields returns the names of the log fields in a call of log/slog.
func fields(info *types.Info, call *ast.CallExpr) (keys []ast.Expr) {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return nil
	}
	fn, ok := info.Uses[sel.Sel].(*types.Func)
	if !ok || fn.Pkg() == nil || fn.Pkg().Path() != "log/slog" {
		return nil
	}
	skip := 0 // arguments before the fields
	switch fn.Name() {
	case "With", "Group":
	case "Debug", "Info", "Warn", "Error":
		skip = 1
	case "DebugContext", "InfoContext", "WarnContext", "ErrorContext":
		skip = 2
	case "Log":
		skip = 3
	case "String", "Int", "Int64", "Uint64", "Bool", "Time", "Duration", "Any":
		if fn.Signature().Recv() != nil || len(call.Args) != 2 {
			return nil
		}
		return call.Args[:1]
	default:
		return nil
	}
	for i := skip; i < len(call.Args); i++ {
		if t, ok := info.TypeOf(call.Args[i]).(*types.Named); ok && t.String() == "log/slog.Attr" {
			continue // found by itself
		}
		if call.Ellipsis.IsValid() && i == len(call.Args)-1 {
			break // made elsewhere
		}
		keys = append(keys, call.Args[i])
		i++
	}
	return keys
}
