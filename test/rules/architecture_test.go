// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"go/ast"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// declared is what the product's packages declare: X, pkg.X, T.m and pkg.T.m of
// everything at the top of a file, and of the methods and fields of types; and the
// packages, by name and by folder.
type declared map[string]bool

func (tr *tree) declared(t *testing.T) declared {
	d := make(declared)
	for _, p := range tr.packages {
		if strings.HasPrefix(p.rel(), "test") {
			continue
		}
		d[p.Name], d[p.rel()] = true, true
		for _, name := range p.GoFiles {
			for _, decl := range tr.file(t, filepath.Join(p.Dir, name)).Decls {
				d.add(p.Name, decl)
			}
		}
	}
	return d
}

func (d declared) add(pkg string, decl ast.Decl) {
	top := func(name string) { d[name], d[pkg+"."+name] = true, true }
	member := func(of, name string) { d[name], d[of+"."+name], d[pkg+"."+of+"."+name] = true, true, true }
	switch decl := decl.(type) {
	case *ast.FuncDecl:
		if decl.Recv == nil {
			top(decl.Name.Name)
		} else {
			member(receiver(decl.Recv.List[0].Type), decl.Name.Name)
		}
	case *ast.GenDecl:
		for _, spec := range decl.Specs {
			switch spec := spec.(type) {
			case *ast.ValueSpec:
				for _, name := range spec.Names {
					top(name.Name)
				}
			case *ast.TypeSpec:
				top(spec.Name.Name)
				for _, f := range members(spec.Type) {
					for _, name := range f.Names {
						member(spec.Name.Name, name.Name)
					}
				}
			}
		}
	}
}

// receiver is the name of a method's type.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// members are the fields of a struct, or the methods of an interface.
func members(e ast.Expr) []*ast.Field {
	switch e := e.(type) {
	case *ast.StructType:
		return e.Fields.List
	case *ast.InterfaceType:
		return e.Methods.List
	}
	return nil
}

// Whatever docs/ARCHITECTURE.md names is there: files and folders, where a file
// without a folder is one of the folder that was named last, and identifiers. A
// command is looked after by TestCommandLines.
func TestArchitectureNamesWhatIsThere(t *testing.T) {
	const name = "docs/ARCHITECTURE.md"
	tr := loaded(t)
	known := tr.declared(t)
	stands := func(name string) bool {
		_, err := os.Stat(filepath.Join(tr.root, name))
		return err == nil
	}
	text := regexp.MustCompile(`(?ms)^`+"```"+`.*?^`+"```").ReplaceAllString(tr.read(t, name), "")
	text = regexp.MustCompile(`\]\([^)]*\)`).ReplaceAllString(text, "]") // links are TestLinks'

	folder, files := "", 0
	for _, m := range regexp.MustCompile(`\b((?:sdk|nsmgr|forwarder|registry|internal|cmd|proto|test)(?:/\w+)+|\w+)(\.go)?\b`).FindAllStringSubmatch(text, -1) {
		where, file := m[0], m[2] != ""
		switch {
		case strings.Contains(where, "/") && file:
			folder = path.Dir(where)
		case strings.Contains(where, "/"):
			folder = where
		case file:
			where = path.Join(folder, where)
		default:
			continue
		}
		if files++; !stands(where) {
			t.Errorf("%s names %s, and there is no %s", name, m[0], where)
		}
	}

	identifiers := 0
	for _, m := range regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(text, -1) {
		switch ext := path.Ext(m[1]); {
		case strings.HasPrefix(m[1], "nsm "), ext == ".pem", ext == ".json":
		case !known[m[1]]:
			t.Errorf("%s: nothing is called `%s`", name, m[1])
		default:
			identifiers++
		}
	}
	if files < 30 || identifiers < 40 {
		t.Errorf("%d files and %d identifiers were found in %s: has its form changed?", files, identifiers, name)
	}
}
