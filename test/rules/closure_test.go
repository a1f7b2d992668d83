// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"go/ast"
	"go/types"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestFollowingARequest counts what somebody reads who follows a Request
// through the manager: the packages and files of the functions that it calls,
// and that they call, in this module. A method of an interface stands for its
// implementations beside it. What runs in goroutines of its own is not followed:
// a Request does not wait for it.
func TestFollowingARequest(t *testing.T) {
	const maxPackages, maxFiles = 12, 40
	tr := loaded(t)
	type function struct {
		body *ast.FuncDecl
		file string
		info *types.Info
	}
	functions := make(map[string]function)
	for _, p := range tr.packages {
		if strings.HasPrefix(p.rel(), "test/") || strings.HasPrefix(p.rel(), "proto/") || strings.HasPrefix(p.rel(), "cmd/") {
			continue
		}
		_, files, info := tr.check(t, p)
		for _, f := range files {
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
					name := info.Defs[fn.Name].(*types.Func).FullName()
					functions[name] = function{fn, tr.fset.Position(fn.Pos()).Filename, info}
				}
			}
		}
	}
	packages, files := make(map[string]bool), make(map[string]bool)
	seen := make(map[string]bool)
	var follow func(name string)
	follow = func(name string) {
		f, ok := functions[name]
		if !ok || seen[name] {
			return
		}
		seen[name] = true
		file, _ := filepath.Rel(tr.root, f.file)
		files[file] = true
		packages[filepath.Dir(file)] = true
		ast.Inspect(f.body.Body, func(n ast.Node) bool {
			if startsGoroutine(n) {
				return false
			}
			if id, ok := n.(*ast.Ident); ok {
				callee, ok := f.info.Uses[id].(*types.Func)
				if !ok {
					return true
				}
				follow(callee.Origin().FullName())
				if recv := callee.Signature().Recv(); recv != nil && types.IsInterface(recv.Type()) && callee.Pkg() != nil {
					for name := range functions {
						if strings.HasPrefix(strings.TrimLeft(name, "(*"), callee.Pkg().Path()+".") && strings.HasSuffix(name, ")."+callee.Name()) {
							follow(name)
						}
					}
				}
			}
			return true
		})
	}
	follow("(*" + module + "/nsmgr.Manager).Request")
	t.Logf("%d functions in %d files of %d packages:\n%s", len(seen), len(files), len(packages),
		strings.Join(slices.Sorted(maps.Keys(files)), "\n"))
	if len(files) == 0 {
		t.Fatal("there is no Manager.Request")
	}
	if len(packages) > maxPackages || len(files) > maxFiles {
		t.Errorf("%d packages and %d files, want at most %d and %d", len(packages), len(files), maxPackages, maxFiles)
	}
}

// startsGoroutine reports whether n is a go statement or a call of WaitGroup.Go.
func startsGoroutine(n ast.Node) bool {
	if call, ok := n.(*ast.CallExpr); ok && len(call.Args) == 1 {
		sel, isSelector := call.Fun.(*ast.SelectorExpr)
		_, isFunction := call.Args[0].(*ast.FuncLit)
		return isSelector && isFunction && sel.Sel.Name == "Go"
	}
	_, ok := n.(*ast.GoStmt)
	return ok
}
