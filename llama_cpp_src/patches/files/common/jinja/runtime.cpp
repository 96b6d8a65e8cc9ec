#include "lexer.h"
#include "python.h"
#include "runtime.h"
#include "value.h"
#include "utils.h"

#include <string>
#include <vector>
#include <memory>
#include <cstdint>

#define FILENAME "jinja-runtime"

bool g_jinja_debug = false;

namespace jinja {

void enable_debug(bool enable) {
    g_jinja_debug = enable;
}

static value_string exec_statements(const statements & stmts, context & ctx) {
    value_string written = mk_val<value_string>();
    ctx.out = &written->val_str;
    for (const auto & stmt : stmts) {
        stmt->execute(ctx);
    }
    return written;
}

static std::string get_line_col(const std::string & source, size_t pos) {
    size_t line = 1;
    size_t col = 1;
    for (size_t i = 0; i < pos && i < source.size(); i++) {
        if (source[i] == '\n') {
            line++;
            col = 1;
        } else {
            col++;
        }
    }
    return "line " + std::to_string(line) + ", column " + std::to_string(col);
}

// execute with error handling
value statement::execute(context & ctx) const {
    try {
        spend(1);
        return execute_impl(ctx);
    } catch (const continue_statement::signal & /* ex */) {
        throw;
    } catch (const break_statement::signal & /* ex */) {
        throw;
    } catch (const rethrown_exception & /* ex */) {
        throw;
    } catch (const std::exception & e) {
        const std::string & source = *ctx.src;
        std::ostringstream oss;
        if (source.empty()) {
            oss << "\nError executing " << type() << " at position " << pos << ": " << e.what();
        } else {
            oss << "\n------------\n";
            oss << "While executing " << type() << " at " << get_line_col(source, pos) << " in source:\n";
            oss << peak_source(source, pos) << "\n";
            oss << "Error: " << e.what();
        }
        // throw as another exception to avoid repeated formatting
        throw rethrown_exception(oss.str());
    }
}

//
// helpers
//

static void mark_used(context & ctx, value val, const char * op = nullptr) {
    if (ctx.is_get_stats) {
        value_t::stats_t::mark_used(val);
        if (op) {
            val->stats.ops.insert(op);
        }
    }
}

static void add_arguments(func_args & args, const statements & stmts, context & ctx) {
    for (const auto & stmt : stmts) {
        const auto * spread = cast_stmt<spread_expression>(stmt);
        if (!spread) {
            args.push_back(stmt->execute(ctx));
            continue;
        }
        const value given = spread->argument->execute(ctx);
        if (!spread->is_mapping) {
            for (const auto & item : py_iterate(given)) {
                args.push_back(item);
            }
            continue;
        }
        if (!is_val<value_object>(given)) {
            throw std::runtime_error("** must be followed by a mapping, not by " + py_type(given));
        }
        for (const auto & [key, val] : given->as_ordered_object()) {
            args.push_back(mk_val<value_kwarg>(key->as_string().str(), val));
        }
    }
}

static value apply_filter(context & ctx, const statement_ptr & filter, const value & input) {
    const auto * call = cast_stmt<call_expression>(filter);
    const auto & name = cast_stmt<identifier>(call ? call->callee : filter)->val;
    const auto & filters = builtin_filters();
    const auto   found   = filters.find(name);
    if (found == filters.end()) {
        throw std::runtime_error((is_known_filter(name) ? "not supported: the filter '" : "there is no filter '") + name + "'");
    }
    mark_used(ctx, input, name.c_str());
    func_args args(ctx);
    if (call) {
        add_arguments(args, call->args, ctx);
    }
    return value_func_t(name, found->second, input).invoke(args);
}

static value apply_filters(context & ctx, const statements & filters, value input) {
    for (const auto & filter : filters) {
        input = apply_filter(ctx, filter, input);
    }
    return input;
}

static void assign(const statement_ptr & target, const value & val, context & ctx) {
    if (const auto * name = cast_stmt<identifier>(target)) {
        ctx.set_val(name->val, val);
    } else if (const auto * tuple = cast_stmt<tuple_literal>(target)) {
        const auto items = py_iterate(val);
        if (items.size() != tuple->val.size()) {
            throw std::runtime_error(std::string("Too ") + (tuple->val.size() > items.size() ? "few" : "many") + " items to unpack");
        }
        for (size_t i = 0; i < items.size(); ++i) {
            assign(tuple->val[i], items[i], ctx);
        }
    } else {
        const auto * member = cast_stmt<member_expression>(target);
        const value  object = member->object->execute(ctx);
        if (!is_val<value_namespace>(object)) {
            throw std::runtime_error("cannot assign attribute on non-namespace object");
        }
        const auto & attribute = cast_stmt<identifier>(member->property)->val;
        cast_val<value_namespace>(object)->attributes->insert(attribute, val);
    }
}

// Bind the arguments of a macro, positional and named. A default may use the parameters before it.
static void bind_parameters(const std::string & name, const signature & sig, const func_args & args, context & ctx) {
    const auto fail = [&](const std::string & why) {
        throw std::runtime_error("macro '" + name + "' " + why);
    };
    auto varargs = mk_val<value_array>();
    auto kwargs  = mk_val<value_object>();
    value caller;
    std::vector<value> found(sig.args.size());
    const auto parameter = [&](size_t i) -> const std::string & {
        const auto * with_default = cast_stmt<keyword_argument_expression>(sig.args[i]);
        return cast_stmt<identifier>(with_default ? with_default->key : sig.args[i])->val;
    };
    spend(static_cast<int64_t>(args.count() * (sig.args.size() + 1) / 8));
    size_t place = 0;
    for (const auto & arg : args.get_args()) {
        if (!is_val<value_kwarg>(arg)) {
            if (place < found.size()) {
                found[place++] = arg;
            } else {
                varargs->push_back(arg);
            }
            continue;
        }
        const auto * kwarg = cast_val<value_kwarg>(arg);
        size_t at = 0;
        while (at < found.size() && parameter(at) != kwarg->key) {
            ++at;
        }
        if (at < found.size()) {
            if (found[at]) {
                fail("got two values for '" + kwarg->key + "'");
            }
            found[at] = kwarg->val;
        } else if (kwarg->key == "caller" && sig.uses_caller) {
            caller = kwarg->val;
        } else {
            kwargs->insert(kwarg->key, kwarg->val);
        }
    }
    if (!varargs->as_array().empty() && !sig.uses_varargs) {
        fail("takes not more than " + std::to_string(found.size()) + " argument(s)");
    }
    if (!kwargs->as_ordered_object().empty() && !sig.uses_kwargs) {
        fail("takes no keyword argument '" + kwargs->as_ordered_object()[0].first->as_string().str() + "'");
    }
    if (sig.uses_varargs) {
        ctx.set_val("varargs", mk_val<value_tuple>(varargs->as_array()));
    }
    if (sig.uses_kwargs) {
        ctx.set_val("kwargs", kwargs);
    }
    if (sig.uses_caller) {
        ctx.set_val("caller", caller ? caller : mk_val<value_undefined>("No caller defined", true));
    }
    for (size_t i = 0; i < found.size(); ++i) {
        const auto * with_default = cast_stmt<keyword_argument_expression>(sig.args[i]);
        if (!found[i]) {
            found[i] = with_default ? with_default->val->execute(ctx)
                                    : mk_val<value_undefined>("parameter '" + parameter(i) + "' was not provided", true);
        }
        ctx.set_val(parameter(i), found[i]);
    }
}

// A macro sees the scope in which it is defined, not the scope of its call.
static value make_macro(context & ctx, const std::string & name, const signature & sig, const statements & body) {
    if (ctx.kept->empty() || ctx.kept->back() != ctx.here) {
        ctx.kept->push_back(ctx.here);
    }
    const std::weak_ptr<scope> around = ctx.here;
    return mk_val<value_func>(name, [name, &sig, &body, around](const func_args & args) -> value {
        context inside(args.ctx, around.lock());
        bind_parameters(name, sig, args, inside);
        return exec_statements(body, inside);
    });
}

//
// expressions
//

value identifier::execute_impl(context & ctx) const {
    if (const value * found = ctx.here->find(val)) {
        mark_used(ctx, *found);
        return *found;
    }
    const auto & builtins = global_builtins();
    const auto   found    = builtins.find(val);
    if (found != builtins.end()) {
        return mk_val<value_func>(val, found->second);
    }
    if (val == "cycler" || val == "joiner" || val == "lipsum" || val == "self") {
        not_supported("'" + val + "'");
    }
    return mk_val<value_undefined>(val);
}

value object_literal::execute_impl(context & ctx) const {
    auto obj = mk_val<value_object>();
    for (const auto & pair : val) {
        value key = pair.first->execute(ctx);
        obj->insert(key, pair.second->execute(ctx));
    }
    return obj;
}

value binary_expression::execute_impl(context & ctx) const {
    value left_val = left->execute(ctx);
    if (op.value == "and") {
        return py_truth(left_val) ? right->execute(ctx) : left_val;
    }
    if (op.value == "or") {
        return py_truth(left_val) ? left_val : right->execute(ctx);
    }
    return py_binary(op.value, left_val, right->execute(ctx));
}

value compare_expression::execute_impl(context & ctx) const {
    value left_val = first->execute(ctx);
    value result;
    for (const auto & [op, right] : others) {
        value right_val = right->execute(ctx);
        result   = py_compare(op, left_val, right_val);
        left_val = right_val;
        if (!result->as_bool()) {
            break;
        }
    }
    return result;
}

value ternary_expression::execute_impl(context & ctx) const {
    if (py_truth(condition->execute(ctx))) {
        return true_expr->execute(ctx);
    }
    return false_expr ? false_expr->execute(ctx) : mk_val<value_undefined>("the condition was false and there is no else", true);
}

value filter_expression::execute_impl(context & ctx) const {
    return apply_filter(ctx, filter, operand->execute(ctx));
}

value test_expression::execute_impl(context & ctx) const {
    const auto * call = cast_stmt<call_expression>(test);
    const auto & name = cast_stmt<identifier>(call ? call->callee : test)->val;
    const auto & tests = builtin_tests();
    const auto   found = tests.find(name);
    if (found == tests.end()) {
        throw std::runtime_error((is_known_test(name) ? "not supported: the test '" : "there is no test '") + name + "'");
    }
    const value input = operand->execute(ctx);
    mark_used(ctx, input, ("test_is_" + name).c_str());
    func_args args(ctx);
    if (call) {
        add_arguments(args, call->args, ctx);
    }
    const value result = value_func_t(name, found->second, input).invoke(args);
    return negate ? value(mk_val<value_bool>(!result->as_bool())) : result;
}

value unary_expression::execute_impl(context & ctx) const {
    const value operand = argument->execute(ctx);
    if (op.value == "not") {
        return mk_val<value_bool>(!py_truth(operand));
    }
    const value negative = py_negative(operand);
    return op.value == "-" ? negative : py_negative(negative);
}

value member_expression::execute_impl(context & ctx) const {
    const value object = this->object->execute(ctx);
    if (!computed) {
        const auto & name = cast_stmt<identifier>(property)->val;
        const value  val  = py_attribute(object, name);
        mark_used(ctx, object, "object_access");
        mark_used(ctx, val);
        return val;
    }
    if (const auto * slice = cast_stmt<slice_expression>(property)) {
        const auto bound = [&](const statement_ptr & expr) {
            return expr ? expr->execute(ctx) : value(mk_val<value_none>());
        };
        const value start = bound(slice->start_expr);
        const value stop  = bound(slice->stop_expr);
        mark_used(ctx, object, "slice");
        return py_slice(object, start, stop, bound(slice->step_expr));
    }
    const value key = property->execute(ctx);
    const value val = py_item(object, key);
    mark_used(ctx, object, py_is_integer(key) && !is_val<value_object>(object) ? "array_access" : "object_access");
    mark_used(ctx, key);
    mark_used(ctx, val);
    return val;
}

value call_expression::execute_impl(context & ctx) const {
    const value callee_val = callee->execute(ctx);
    func_args args(ctx);
    add_arguments(args, this->args, ctx);
    if (is_val<value_func>(callee_val)) {
        return callee_val->invoke(args);
    }
    if (is_val<value_loop>(callee_val) && callee_val->val_func) {
        return callee_val->val_func(args);
    }
    if (is_val<value_undefined>(callee_val)) {
        throw std::runtime_error(cast_val<value_undefined>(callee_val)->message());
    }
    throw std::runtime_error("a value of type " + py_type(callee_val) + " is not callable");
}

value keyword_argument_expression::execute_impl(context & ctx) const {
    return mk_val<value_kwarg>(cast_stmt<identifier>(key)->val, val->execute(ctx));
}

//
// statements
//

value text_statement::execute_impl(context & ctx) const {
    ctx.out->append(val);
    return nullptr;
}

value print_statement::execute_impl(context & ctx) const {
    const value shown = val->execute(ctx);
    if (is_val<value_string>(shown)) {
        ctx.out->append(shown->val_str);
    } else {
        ctx.out->append(py_str(shown));
    }
    return nullptr;
}

value filter_statement::execute_impl(context & ctx) const {
    context inside(ctx);
    ctx.out->append(py_str(apply_filters(ctx, filters, exec_statements(body, inside))));
    return nullptr;
}

value with_statement::execute_impl(context & ctx) const {
    context inside(ctx);
    std::vector<value> vals;
    for (const auto & expr : values) {
        vals.push_back(expr->execute(ctx));
    }
    for (size_t i = 0; i < vals.size(); ++i) {
        assign(targets[i], vals[i], inside);
    }
    for (const auto & stmt : body) {
        stmt->execute(inside);
    }
    return nullptr;
}

value if_statement::execute_impl(context & ctx) const {
    for (const auto & stmt : py_truth(test->execute(ctx)) ? body : alternate) {
        stmt->execute(ctx);
    }
    return nullptr;
}

bool value_loop_t::has(size_t index) {
    while (val_arr.size() <= index && n_taken < coming.size()) {
        spend(1);
        const value & next = coming[n_taken++];
        if (!accepts || accepts(next)) {
            pay(1);
            val_arr.push_back(next);
        }
    }
    return val_arr.size() > index;
}

value value_loop_t::attribute(const std::string & name) {
    const auto number = [](size_t n) { return mk_val<value_int>(static_cast<int64_t>(n)); };
    if (name == "index0" || name == "index") {
        return number(index0 + (name == "index"));
    }
    if (name == "first") {
        return mk_val<value_bool>(index0 == 0);
    }
    if (name == "last") {
        return mk_val<value_bool>(!has(index0 + 1));
    }
    if (name == "length" || name == "revindex" || name == "revindex0") {
        has(SIZE_MAX);
        return number(name == "length" ? val_arr.size() : val_arr.size() - index0 - (name == "revindex0"));
    }
    if (name == "depth" || name == "depth0") {
        return number(static_cast<size_t>(depth0) + (name == "depth"));
    }
    if (name == "previtem") {
        return index0 > 0 ? val_arr[index0 - 1] : mk_val<value_undefined>("there is no previous item", true);
    }
    if (name == "nextitem") {
        return has(index0 + 1) ? val_arr[index0 + 1] : mk_val<value_undefined>("there is no next item", true);
    }
    if (name == "cycle") {
        return mk_val<value_func>(name, [index = index0](const func_args & args) -> value {
            args.ensure_count(1);
            return args.get_pos(index % args.count());
        });
    }
    if (name == "changed") {
        return mk_val<value_func>(name, [loop = shared_from_this()](const func_args & args) -> value {
            const value given   = mk_val<value_tuple>(args.get_args());
            const bool  changed = !loop->last_changed || !py_equal(loop->last_changed, given);
            loop->last_changed = given;
            return mk_val<value_bool>(changed);
        });
    }
    return mk_val<value_undefined>("'loop' has no attribute '" + name + "'", true);
}

value for_statement::execute_impl(context & ctx) const {
    const value over = iterable->execute(ctx);
    mark_used(ctx, over, "array_access");
    if (is_val<value_object>(over)) {
        mark_used(ctx, over, "object_access");
    }
    run(ctx, over, 0);
    return nullptr;
}

void for_statement::run(context & ctx, const value & over, int64_t depth0) const {
    auto loop = mk_val<value_loop>();
    struct End { // takes from the loop what lies in this frame
        value_loop_t & loop;
        ~End() {
            loop.accepts  = nullptr;
            loop.val_func = nullptr;
            loop.n_taken  = loop.coming.size();
        }
    } end{*loop};
    loop->coming = py_iterate(over);
    loop->pay(loop->coming.size());
    loop->depth0 = depth0;
    if (test) {
        loop->accepts = [&](const value & item) {
            context inside(ctx);
            assign(loopvar, item, inside);
            return py_truth(test->execute(inside));
        };
    }
    if (is_recursive) {
        loop->val_func = [&](const func_args & args) -> value {
            const value deeper  = py_arguments(args, 0, 1, {"iterable"})[0];
            value_string written = mk_val<value_string>();
            context inside(ctx);
            inside.out = &written->val_str;
            run(inside, deeper, depth0 + 1);
            return written;
        };
    }
    bool is_done = false;
    for (size_t i = 0; loop->has(i); ++i) {
        loop->index0 = i;
        context inside(ctx);
        inside.set_val("loop", loop);
        assign(loopvar, loop->val_arr[i], inside);
        try {
            for (const auto & stmt : body) {
                stmt->execute(inside);
            }
        } catch (const continue_statement::signal &) {
            continue;
        } catch (const break_statement::signal &) {
            if (is_val<value_view>(over)) {
                const_cast<value_view_t *>(cast_val<value_view>(over))->is_begun = true;
            }
            break;
        }
        is_done = true;
    }
    if (!is_done) {
        context inside(ctx);
        for (const auto & stmt : default_block) {
            stmt->execute(inside);
        }
    }
}

value set_statement::execute_impl(context & ctx) const {
    if (val) {
        assign(assignee, val->execute(ctx), ctx);
    } else {
        context inside(ctx);
        assign(assignee, apply_filters(ctx, filters, exec_statements(body, inside)), ctx);
    }
    return nullptr;
}

value macro_statement::execute_impl(context & ctx) const {
    const auto & macro_name = cast_stmt<identifier>(name)->val;
    ctx.set_val(macro_name, make_macro(ctx, macro_name, sig, body));
    return nullptr;
}

value call_statement::execute_impl(context & ctx) const {
    const auto * call_expr  = cast_stmt<call_expression>(this->call);
    const value  callee_val = call_expr->callee->execute(ctx);
    if (!is_val<value_func>(callee_val)) {
        throw std::runtime_error("a value of type " + py_type(callee_val) + " is not callable");
    }
    func_args args(ctx);
    add_arguments(args, call_expr->args, ctx);
    args.push_back(mk_val<value_kwarg>("caller", make_macro(ctx, "caller", sig, body)));
    ctx.out->append(py_str(callee_val->invoke(args)));
    return nullptr;
}

std::string runtime::debug_dump_program(const program & prog, const std::string & src) {
    std::ostringstream oss;
    size_t lvl = 0;
    context ctx;
    ctx.src.reset(new std::string(src));

    auto indent = [](size_t lvl) -> std::string {
        return std::string(lvl * 2, ' ');
    };

    ctx.visitor = [&](bool is_leaf, const statement * node, std::vector<visitor_pair> children) {
        oss << indent(lvl) << node->type() << ":\n";
        lvl++;
        if (is_leaf) {
            const auto & pos = node->pos;
            oss << indent(lvl) << "(leaf) at " << get_line_col(src, pos) << " in source:\n";
            std::string snippet = peak_source(src, pos);
            string_replace_all(snippet, "\n", "\n" + indent(lvl));
            oss << indent(lvl) << snippet << "\n";
        } else {
            for (auto & [label, children_vec] : children) {
                oss << indent(lvl) << label << ":\n";
                lvl++;
                if (children_vec.empty()) {
                    oss << indent(lvl) << "<empty>\n\n";
                } else {
                    for (auto * child : children_vec) {
                        if (!child) {
                            continue;
                        }
                        child->visit(ctx);
                    }
                }
                lvl--;
            }
        }
        lvl--;
    };

    for (const auto & stmt : prog.body) {
        stmt->visit(ctx);
    }

    return oss.str();
}

} // namespace jinja
